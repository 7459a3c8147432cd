//! Rows of several sources: joined, and repeated so that each source has its share of an epoch.
//!
//! An epoch has every row of every source at least once. The source that is largest relative to its
//! weight has each row exactly once; rows of the others are repeated until their source has its
//! share. This is `all_exhausted` of `datasets.interleave_datasets` with fixed counts in place of
//! draws: no row is lost, and the number of steps is known.

use super::error::Error;
use super::random::{Stream, stream};
use super::raw::RawRows;
use crate::settings::DataSource;
use crate::summary::SourceFacts;

/// The splits of a source.
pub(super) struct RawSource<C, R> {
    pub source: DataSource,
    pub train: RawRows<C, R>,
    pub dev: Option<RawRows<C, R>>,
    pub test: Option<RawRows<C, R>>,
}

/// A row that stores the index of its file.
pub(super) trait HasFile {
    fn file_mut(&mut self) -> &mut usize;
}

/// Largest number of times that an epoch may repeat a row; more is probably a mistake.
const MOST_REPEATS: usize = 100;

impl<C: Clone, R: HasFile + Clone> RawSource<C, R> {
    /// Wraps the rows of the only source.
    pub fn single(train: RawRows<C, R>, dev: Option<RawRows<C, R>>, test: Option<RawRows<C, R>>) -> Self {
        let source = DataSource::new("");
        RawSource { source, train, dev, test }
    }
}

/// Repeats train's rows of each source by the weights, and returns each source's number of rows in
/// an epoch; empty for one source.
///
/// # Errors
/// `Error::Options` for weights that would repeat a row more than `MOST_REPEATS` times.
pub(super) fn weigh<C: Clone, R: HasFile + Clone>(
    sources: &mut [RawSource<C, R>],
) -> Result<Vec<SourceFacts>, Error> {
    if sources.len() < 2 {
        return Ok(Vec::new());
    }
    let rows: Vec<usize> = sources.iter().map(|source| source.train.rows.len()).collect();
    let weights: Option<Vec<f64>> = sources.iter().map(|source| source.source.weight).collect();
    let of_epoch = weights.map_or_else(|| rows.clone(), |weights| shares(&rows, &weights));
    let fact = |((source, &rows), &of_epoch): ((&mut RawSource<C, R>, &usize), &usize)| {
        let DataSource { path, weight, .. } = &source.source;
        let name = path.display().to_string();
        if of_epoch / rows > MOST_REPEATS {
            return Err(Error::Options(format!(
                "`data = {name}`: by the weights each of its {rows} rows would come {} times in an epoch, more than \
                 {MOST_REPEATS}; give it a smaller weight",
                of_epoch / rows
            )));
        }
        repeat(&mut source.train.rows, of_epoch);
        Ok(SourceFacts { name, weight: *weight, rows, of_epoch })
    };
    sources.iter_mut().zip(&rows).zip(&of_epoch).map(fact).collect()
}

/// Returns the rows of each source in an epoch: at least its own, in proportion to the weights.
fn shares(rows: &[usize], weights: &[f64]) -> Vec<usize> {
    let unit = rows.iter().zip(weights).map(|(&rows, weight)| rows as f64 / weight).fold(0.0, f64::max);
    let share = |(&rows, weight): (&usize, &f64)| ((weight * unit).round() as usize).max(rows);
    rows.iter().zip(weights).map(share).collect()
}

/// Repeats rows until there are `count`: all of them as often as they fit, then a random part that
/// is the same for every seed.
fn repeat<R: Clone>(rows: &mut Vec<R>, count: usize) {
    let own = rows.len();
    let mut part: Vec<usize> = (0..own).collect();
    Stream::new(0, stream::REPEATED).shuffle(&mut part);
    part.truncate(count % own);
    part.sort_unstable();
    let whole = (own..count - part.len()).map(|row| row % own).chain(part);
    let more: Vec<R> = whole.map(|row| rows[row].clone()).collect();
    rows.extend(more);
}

/// Joins the splits of all sources. Only some sources may have dev and test; the result always has
/// train and dev.
///
/// # Errors
/// `Error::Options` if there is no source.
pub(super) fn join_splits<C, R: HasFile>(sources: Vec<RawSource<C, R>>) -> Result<JoinedSplits<C, R>, Error> {
    let (mut train, mut dev, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for source in sources {
        train.push(source.train);
        dev.extend(source.dev);
        test.extend(source.test);
    }
    Ok((join(train).ok_or_else(no_data)?, join(dev).ok_or_else(no_data)?, join(test)))
}

/// Train, dev, and test if there is one.
type JoinedSplits<C, R> = (RawRows<C, R>, RawRows<C, R>, Option<RawRows<C, R>>);

/// Returns the error of a run without a data set.
pub(super) fn no_data() -> Error {
    Error::Options("`data` names no data set".into())
}

/// Joins the rows of one split of all sources; None if there are none. The columns are the first
/// source's.
pub(super) fn join<C, R: HasFile>(parts: impl IntoIterator<Item = RawRows<C, R>>) -> Option<RawRows<C, R>> {
    parts.into_iter().reduce(|mut all, mut part| {
        part.rows.iter_mut().for_each(|row| *row.file_mut() += all.files.len());
        all.files.append(&mut part.files);
        all.rows.append(&mut part.rows);
        part.unread.retain(|column| !all.unread.contains(column));
        all.unread.append(&mut part.unread);
        all.left_out += part.left_out;
        all.blank += part.blank;
        all.warnings.append(&mut part.warnings);
        all
    })
}

/// Returns the warnings of all sources, with the source's name if there are several.
pub(super) fn warnings<C, R>(sources: &[RawSource<C, R>]) -> Vec<String> {
    let several = sources.len() > 1;
    let warnings = sources.iter().flat_map(|RawSource { source, train, dev, test }| {
        let all = [Some(train), dev.as_ref(), test.as_ref()].into_iter().flatten();
        all.flat_map(|split| &split.warnings).map(move |warning| match several {
            true => format!("{}: {warning}", source.path.display()),
            false => warning.clone(),
        })
    });
    warnings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_epoch_has_the_shares_and_every_row() {
        assert_eq!(shares(&[100, 900], &[1.0, 9.0]), [100, 900]);
        assert_eq!(shares(&[100, 900], &[0.7, 0.3]), [2100, 900]);
        assert_eq!(shares(&[100, 900], &[0.05, 0.95]), [100, 1900]);
    }

    proptest! {
        #[test]
        fn rows_are_repeated_evenly(own in 1usize..40, more in 0usize..100) {
            let mut rows: Vec<usize> = (0..own).collect();
            repeat(&mut rows, own + more);
            prop_assert_eq!(rows.len(), own + more);
            let times: Vec<usize> = (0..own).map(|row| rows.iter().filter(|&&r| r == row).count()).collect();
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            prop_assert!(*least >= 1 && most - least <= 1);
        }

        #[test]
        fn shares_follow_the_weights(rows in prop::collection::vec(1usize..1000, 2..5), seed in 1u64..100) {
            let weights: Vec<f64> = (0..rows.len()).map(|i| 0.1 + ((seed * (i as u64 + 3)) % 17) as f64).collect();
            let found = shares(&rows, &weights);
            let (all, total) = (found.iter().sum::<usize>() as f64, weights.iter().sum::<f64>());
            for i in 0..rows.len() {
                prop_assert!(found[i] >= rows[i]);
                prop_assert!((found[i] as f64 - all * weights[i] / total).abs() <= rows.len() as f64);
            }
            prop_assert!((0..rows.len()).any(|i| found[i] == rows[i]));
        }
    }
}
