//! The windows of the sample stage: the optimiser steps that a scoring covers.

/// Steps between two scorings, at least: whole epochs of the sample where it is small.
const WINDOW: usize = 12;
/// With `auto`: the least and the most optimiser steps, see docs/method.md for the measurements.
pub const LEAST_STEPS: usize = 48;
pub const MOST_STEPS: usize = 120;

/// Steps between scorings: whole epochs, or even parts of a long one.
pub fn window(per_epoch: usize) -> usize {
    if per_epoch >= 2 * WINDOW {
        per_epoch.div_ceil(per_epoch / WINDOW)
    } else {
        per_epoch * WINDOW.div_ceil(per_epoch)
    }
}

/// The steps that scores cover: whole windows, the last of which ends with the stage. Where the
/// stage is no whole number of windows, its first steps are in none, so that no score comes from
/// less.
pub struct Windows {
    /// In steps.
    pub length: usize,
    /// Steps before the first window.
    ahead: usize,
}

/// What a step is to the windows.
#[derive(Debug, PartialEq)]
pub enum At {
    Within,
    /// A window starts after it, the first.
    Start,
    End,
}

impl Windows {
    pub fn new(per_epoch: usize, most: usize) -> Self {
        let length = window(per_epoch).min(most);
        Windows { length, ahead: most % length }
    }

    pub fn at(&self, step: usize) -> At {
        match step.checked_sub(self.ahead) {
            Some(0) => At::Start,
            Some(done) if done.is_multiple_of(self.length) => At::End,
            _ => At::Within,
        }
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
            let auto = MOST_STEPS / window(per_epoch) * window(per_epoch);
            assert!(auto >= LEAST_STEPS, "{per_epoch}");
            for most in [auto, per_epoch, 2 * per_epoch, 3 * per_epoch, 7 * per_epoch] {
                let windows = Windows::new(per_epoch, most);
                let (mut covered, mut scored) = (0, 0);
                for step in 1..=most {
                    covered += 1;
                    match windows.at(step) {
                        At::Within => {}
                        At::Start => covered = 0,
                        At::End => {
                            assert_eq!(covered, windows.length, "{per_epoch} steps an epoch, {most} in all");
                            (covered, scored) = (0, step);
                        }
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
