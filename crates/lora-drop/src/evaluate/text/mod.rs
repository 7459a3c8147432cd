//! Metrics of generated text against references. Each reproduces the number of the Python package
//! that defines it in practice.
//!
//! A row has one hypothesis and at least one reference. A hypothesis or a reference may be empty
//! text.

mod bleu;
mod cider;
mod ngrams;
mod nist;
mod number;
mod rouge;
mod tokens;

pub use bleu::{Bleu, bleu};
pub use cider::cider;
pub use nist::nist;
pub use number::{exact_match, final_number};
pub use rouge::{Rouge, rouge};

use crate::settings::definition::choices;
use crate::{Error, Result};

choices! {
    /// A measure of generated text; for all of them more is better.
    #[derive(Hash, PartialOrd, Ord)]
    Metric {
        /// Corpus BLEU from 0 to 100, as sacrebleu.
        Bleu = "bleu",
        /// NIST with n-grams up to 5, as NLTK.
        Nist = "nist",
        /// CIDEr from 0 to 10, as pycocoevalcap.
        Cider = "cider",
        /// F-measure of single words from 0 to 1, as rouge-score.
        Rouge1 = "rouge1",
        /// F-measure of pairs of words.
        Rouge2 = "rouge2",
        /// F-measure of the longest common subsequence.
        RougeL = "rougeL",
        /// The same by lines, for summaries of several lines.
        RougeLsum = "rougeLsum",
        /// Share of rows with the right final number, from 0 to 1.
        ExactMatch = "exact_match",
    }
}

impl Metric {
    /// The metrics that compare wording: all but [`Metric::ExactMatch`], which needs numbers in the
    /// references.
    pub const WORDING: [Metric; 7] = [
        Metric::Bleu,
        Metric::Nist,
        Metric::Cider,
        Metric::Rouge1,
        Metric::Rouge2,
        Metric::RougeL,
        Metric::RougeLsum,
    ];
}

/// A metric's value over all rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// [`Metric::name`]
    pub name: &'static str,
    pub value: f64,
}

/// Computes `metrics`, in their order, over rows of one hypothesis and its references.
///
/// # Errors
/// The counts differ, there is no row, or a row has no reference; with [`Metric::ExactMatch`] also
/// a row whose references hold no number. The message counts rows from 1.
///
/// ```
/// use lora_drop::evaluate::text::{self, Metric};
///
/// let hypotheses = ["The Mill is cheap.".to_owned()];
/// let references = [vec!["The Mill is cheap.".to_owned(), "The Mill costs little.".to_owned()]];
/// let scores = text::evaluate(&[Metric::RougeL, Metric::Bleu], &hypotheses, &references)?;
/// assert_eq!((scores[0].name, scores[0].value), ("rougeL", 1.0));
/// # Ok::<(), lora_drop::Error>(())
/// ```
pub fn evaluate(metrics: &[Metric], hypotheses: &[String], references: &[Vec<String>]) -> Result<Vec<Score>> {
    check(hypotheses, references)?;
    // one pass over the rows gives all four
    let is_rouge =
        |m: &Metric| matches!(m, Metric::Rouge1 | Metric::Rouge2 | Metric::RougeL | Metric::RougeLsum);
    let rouge = if metrics.iter().any(is_rouge) { rouge(hypotheses, references)? } else { Rouge::default() };
    let value = |metric| -> Result<f64> {
        Ok(match metric {
            Metric::Bleu => bleu(hypotheses, references)?.score,
            Metric::Nist => nist(hypotheses, references)?,
            Metric::Cider => cider(hypotheses, references)?,
            Metric::Rouge1 => rouge.rouge1,
            Metric::Rouge2 => rouge.rouge2,
            Metric::RougeL => rouge.rouge_l,
            Metric::RougeLsum => rouge.rouge_lsum,
            Metric::ExactMatch => exact_match(hypotheses, references)?,
        })
    };
    metrics.iter().map(|&metric| Ok(Score { name: metric.name(), value: value(metric)? })).collect()
}

/// Checks that these metrics can be measured against a row's references, before any text is
/// generated; the message does not name the row.
pub(super) fn check_references(metrics: &[Metric], references: &[String]) -> std::result::Result<(), String> {
    if references.is_empty() {
        return Err("no reference to measure generated text against".into());
    }
    if metrics.contains(&Metric::ExactMatch) {
        number::wanted(references)?;
    }
    Ok(())
}

/// Checks what every metric requires of its rows.
fn check(hypotheses: &[String], references: &[Vec<String>]) -> Result<()> {
    let (have, want) = (hypotheses.len(), references.len());
    if have != want {
        return Err(Error::Input(format!(
            "{have} generated texts for {want} rows of references; each row needs one"
        )));
    }
    if have == 0 {
        return Err(Error::Input("there are no rows to measure".into()));
    }
    match references.iter().position(Vec::is_empty) {
        Some(row) => {
            Err(Error::Input(format!("row {} has no reference to measure its text against", row + 1)))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn scores_come_in_the_order_asked_for() {
        let hypotheses = rows(&["the answer is 4", ""]);
        let references = vec![rows(&["the answer is 4"]), rows(&["#### 5", "5.0"])];
        let asked = [Metric::RougeL, Metric::ExactMatch, Metric::Rouge1];
        let found = evaluate(&asked, &hypotheses, &references).expect("scores");
        let expected = [("rougeL", 0.5), ("exact_match", 0.5), ("rouge1", 0.5)];
        assert_eq!(found.iter().map(|s| (s.name, s.value)).collect::<Vec<_>>(), expected);
    }

    type Call = fn(&[String], &[Vec<String>]) -> Result<()>;

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let message = |hypotheses: &[String], references: &[Vec<String>]| {
            let calls: [Call; 5] = [
                |h, r| bleu(h, r).map(drop),
                |h, r| nist(h, r).map(drop),
                |h, r| cider(h, r).map(drop),
                |h, r| rouge(h, r).map(drop),
                |h, r| exact_match(h, r).map(drop),
            ];
            let first = evaluate(&[], hypotheses, references).expect_err("refused").to_string();
            for call in calls {
                assert_eq!(call(hypotheses, references).expect_err("refused").to_string(), first);
            }
            first
        };
        let one = rows(&["one"]);
        assert_eq!(
            message(&one, &[one.clone(), one.clone()]),
            "1 generated texts for 2 rows of references; each row needs one"
        );
        assert_eq!(message(&[], &[]), "there are no rows to measure");
        assert_eq!(
            message(&rows(&["one", "two"]), &[one.clone(), vec![]]),
            "row 2 has no reference to measure its text against"
        );
    }

    #[test]
    fn empty_texts_have_values() {
        for (hypothesis, reference) in [("", "a word"), ("a word", ""), ("", "")] {
            let scores =
                evaluate(&Metric::WORDING, &rows(&[hypothesis]), &[rows(&[reference])]).expect("scores");
            // not -0 either, which would be shown with its sign
            let zero = |s: &Score| s.value.to_bits() == 0;
            assert!(scores.iter().all(zero), "{hypothesis:?} {reference:?}: {scores:?}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for metric in Metric::ALL {
            assert_eq!(metric.to_string().parse::<Metric>().expect("a known name"), *metric);
        }
        assert_eq!(
            "meteor".parse::<Metric>().expect_err("unknown").to_string(),
            "\"meteor\" is unknown; expected bleu, nist, cider, rouge1, rouge2, rougeL, rougeLsum or exact_match"
        );
    }
}
