//! Allocator for the memory of a pass.

use lora_drop_compute::device::Piece;

/// Number of f32 in a cache line. Pieces start at cache lines.
const LINE: usize = 16;

/// First-fit allocator of pieces.
#[derive(Clone, Debug, Default)]
pub struct Space {
    /// Free pieces below `top`, in order; no two of them touch.
    gaps: Vec<Piece>,
    top: usize,
    /// The highest `top` so far.
    peak: usize,
}

impl Space {
    /// Returns the end of the highest piece so far.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Allocates a piece of `len` values, with undefined contents.
    pub fn take(&mut self, len: usize) -> Piece {
        let room = Space::room(len);
        if room == 0 {
            return Piece::default();
        }
        let start = match self.gaps.iter().position(|gap| gap.len >= room) {
            Some(at) => {
                let gap = &mut self.gaps[at];
                let start = gap.start;
                (gap.start, gap.len) = (start + room, gap.len - room);
                if gap.len == 0 {
                    self.gaps.remove(at);
                }
                start
            }
            None => {
                self.top += room;
                self.top - room
            }
        };
        self.peak = self.peak.max(self.top);
        Piece::new(start, len)
    }

    /// Frees a piece that `take` returned.
    pub fn give(&mut self, piece: Piece) {
        let room = Space::room(piece.len);
        if room == 0 {
            return;
        }
        let at = self.gaps.partition_point(|gap| gap.start < piece.start);
        self.gaps.insert(at, Piece::new(piece.start, room));
        if self.gaps.get(at + 1).is_some_and(|next| piece.start + room == next.start) {
            self.gaps[at].len += self.gaps.remove(at + 1).len;
        }
        if at > 0 && self.gaps[at - 1].end() == piece.start {
            self.gaps[at - 1].len += self.gaps.remove(at).len;
        }
        if let Some(last) = self.gaps.last().copied().filter(|gap| gap.end() == self.top) {
            self.top = last.start;
            self.gaps.pop();
        }
    }

    /// Returns the number of values of memory that a piece of `len` values takes.
    pub fn room(len: usize) -> usize {
        len.next_multiple_of(LINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_reused_and_merged() {
        let mut space = Space::default();
        let [a, b, c] = [10, 40, 16].map(|len| space.take(len));
        assert_eq!([a, b, c], [Piece::new(0, 10), Piece::new(16, 40), Piece::new(64, 16)]);
        space.give(a);
        space.give(b);
        // The two gaps are now one of 64 values; what is left of it is used next.
        let d = space.take(17);
        assert_eq!(d, Piece::new(0, 17));
        assert_eq!(space.take(32), Piece::new(32, 32));
        assert_eq!(space.take(1), Piece::new(80, 1));
        assert_eq!((space.peak(), space.take(0)), (96, Piece::default()));
        space.give(c);
        space.give(d);
        space.give(Piece::new(80, 1));
        assert_eq!(space.take(100), Piece::new(64, 100));
    }
}
