//! The windows of the sample stage: the optimiser steps that a scoring covers.

/// Fewest steps between two scorings; if the sample is small, they are whole epochs.
const WINDOW: usize = 12;
/// With `auto`: the least and the most optimiser steps, see docs/method.md for the measurements.
pub const MIN_STEPS: usize = 48;
pub const MAX_STEPS: usize = 120;

/// Steps between scorings: whole epochs, or even parts of a long one.
pub fn window(per_epoch: usize) -> usize {
    if per_epoch >= 2 * WINDOW {
        per_epoch.div_ceil(per_epoch / WINDOW)
    } else {
        per_epoch * WINDOW.div_ceil(per_epoch)
    }
}

/// The steps that scores cover: whole windows, the last of which ends with the stage. If the stage
/// is no whole number of windows, its first steps are in none, so that every score covers a full
/// window.
pub struct Windows {
    /// Steps of a window.
    pub length: usize,
    /// Steps before the first window.
    ahead: usize,
}

impl Windows {
    pub fn new(per_epoch: usize, most: usize) -> Self {
        let length = window(per_epoch).min(most);
        Windows { length, ahead: most % length }
    }

    /// Whether a window ends with this step, counted from 1.
    pub fn ends(&self, step: usize) -> bool {
        step > self.ahead && (step - self.ahead).is_multiple_of(self.length)
    }

    /// Whether a window begins after this step.
    pub fn begins(&self, step: usize) -> bool {
        step == self.ahead || self.ends(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_epochs_or_even_parts() {
        assert_eq!(window(1), 12);
        assert_eq!(window(5), 15);
        assert_eq!(window(12), 12);
        assert_eq!(window(20), 20);
        assert_eq!(window(24), 12);
        assert_eq!(window(211), 13);
    }

    /// Over all lengths of an epoch: every scoring covers a full window, windows do not overlap,
    /// and the last ends with the stage.
    #[test]
    fn no_score_comes_from_less_than_a_full_window() {
        for per_epoch in 1..=400 {
            let auto = MAX_STEPS / window(per_epoch) * window(per_epoch);
            assert!(auto >= MIN_STEPS, "{per_epoch}");
            for most in [auto, per_epoch, 2 * per_epoch, 3 * per_epoch, 7 * per_epoch] {
                let windows = Windows::new(per_epoch, most);
                let (mut covered, mut scored) = (0, 0);
                for step in 1..=most {
                    covered += 1;
                    if windows.ends(step) {
                        assert_eq!(covered, windows.length, "{per_epoch} steps an epoch, {most} in all");
                        scored = step;
                    }
                    if windows.begins(step) {
                        covered = 0;
                    }
                }
                assert_eq!(scored, most, "{per_epoch} steps an epoch");
                // Short epochs are in windows as wholes, so that each row counts as often as any
                // other.
                let whole = per_epoch >= 2 * WINDOW || windows.length.is_multiple_of(per_epoch);
                assert!(whole && (windows.length >= WINDOW || windows.length == most), "{per_epoch}");
            }
        }
    }
}
