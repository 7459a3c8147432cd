//! Checks for infinite and NaN values: a loss, gradient, weight, logit or score that is not finite
//! ends the work with an error and never reaches a weight, a file or a table.

use lora_drop_transformer::Parameters;

use crate::{Error, Result};

/// Checks the logits of a row or of a text's next token; `place` names it for the message.
///
/// # Errors
/// `Error::NotFinite`
pub fn check_logits(logits: &[f32], place: impl FnOnce() -> String) -> Result<()> {
    match logits.iter().find(|logit| !logit.is_finite()) {
        None => Ok(()),
        Some(logit) => Err(Error::NotFinite(format!(
            "{}: the model gives the logit {logit}: its weights or the adapter's are damaged, belong to another \
             model, or diverged in training",
            place()
        ))),
    }
}

/// Checks a measured loss; `place` names the rows for the message.
///
/// # Errors
/// `Error::NotFinite`
pub fn check_loss(loss: f64, place: impl FnOnce() -> String) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite(format!(
        "{}: the loss is {loss}: the weights of the model or the adapter are damaged, belong to another model, or \
         diverged in training",
        place()
    )))
}

/// Checks all trained values before they are written.
///
/// # Errors
/// `Error::NotFinite` with the tensor's name.
pub fn check_parameters(parameters: &Parameters) -> Result<()> {
    for parameter in parameters.list() {
        let values = &parameters.values()[parameter.range.clone()];
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::NotFinite(format!(
                "{} has the value {value}: the training diverged, and nothing of this epoch is written; try a lower \
                 `learning_rate`",
                parameter.name
            )));
        }
    }
    Ok(())
}

/// Values of an optimiser step that are checked before its update.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Number of the step, from 1.
    pub number: usize,
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Whether an earlier step has updated weights.
    pub updated: bool,
    /// Whether products multiply in bf16.
    pub bf16: bool,
}

impl Step {
    /// Checks the loss and the gradient's norm.
    ///
    /// # Errors
    /// `Error::NotFinite` with the step, its learning rate, the likely cause and what to try.
    pub fn check(&self) -> Result<()> {
        let Step { number, loss, grad_norm, learning_rate, updated, bf16 } = *self;
        let seen = match (loss.is_finite(), grad_norm.is_finite()) {
            (true, true) => return Ok(()),
            (false, _) => format!("the loss is {loss}"),
            (true, false) => format!("the norm of the gradient is {grad_norm}"),
        };
        let f32 = if bf16 { ", or `dtype = f32`" } else { "" };
        let cause = if updated {
            format!(
                "the training diverged; try a lower `learning_rate`, more `warmup_ratio` or a lower `max_grad_norm`{f32}"
            )
        } else {
            format!(
                "nothing was learned yet, so the model's own outputs are not finite; look for damaged or very large \
                 weights in the checkpoint{f32}"
            )
        };
        Err(Error::NotFinite(format!("step {number}, learning rate {learning_rate:.2e}: {seen}: {cause}")))
    }
}

#[cfg(test)]
mod tests {
    use lora_drop_transformer::Group;

    use super::*;

    fn message(result: Result<()>) -> String {
        match result {
            Err(Error::NotFinite(message)) => message,
            other => panic!("expected an error of numbers, got {other:?}"),
        }
    }

    #[test]
    fn a_step_says_what_it_has_seen_and_what_to_try() {
        let good =
            Step { number: 7, loss: 0.5, grad_norm: 3.0, learning_rate: 1e-3, updated: true, bf16: false };
        good.check().unwrap();
        let told = message(Step { loss: f64::NAN, ..good }.check());
        assert!(told.starts_with("step 7, learning rate 1.00e-3: the loss is NaN"), "{told}");
        assert!(told.contains("`learning_rate`") && !told.contains("`dtype`"), "{told}");
        let told = message(Step { grad_norm: f64::INFINITY, bf16: true, ..good }.check());
        assert!(told.contains("gradient is inf") && told.contains("`dtype = f32`"), "{told}");
        let told = message(Step { loss: f64::INFINITY, updated: false, ..good }.check());
        assert!(told.contains("own outputs are not finite"), "{told}");
    }

    #[test]
    fn a_weight_that_is_no_number_is_named() {
        let mut parameters = Parameters::new();
        parameters.add("fine", &[2], Group::Lora, true, &[0.0, f32::MAX]);
        check_parameters(&parameters).unwrap();
        parameters.add("head.bias", &[2], Group::Head, true, &[0.0, f32::NEG_INFINITY]);
        let told = message(check_parameters(&parameters));
        assert!(told.contains("head.bias has the value -inf"), "{told}");
    }

    #[test]
    fn logits_and_losses_name_their_place() {
        check_logits(&[1.0, f32::MIN], || unreachable!("all are finite")).unwrap();
        assert!(
            message(check_logits(&[1.0, f32::NAN], || "row 3".into())).starts_with("row 3: the model gives")
        );
        check_loss(0.0, || unreachable!("it is finite")).unwrap();
        assert!(message(check_loss(f64::NAN, || "dev".into())).starts_with("dev: the loss is NaN"));
    }
}
