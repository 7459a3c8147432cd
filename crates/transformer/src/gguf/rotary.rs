//! Order of the rows of q and k. transformers rotates a head's first half against its second half,
//! llama.cpp's `llama` rotates pairs of neighbours, so its converter puts row j of the second half
//! after row j of the first.

/// Returns the GGUF file's row for each row of transformers: transformers' row (head, half, j) is
/// the file's row (head, j, half). `None` if `rows` is not `heads` heads of an even size.
pub(crate) fn to_hf_rows(rows: usize, heads: usize) -> Option<Vec<usize>> {
    let size = head_size(rows, heads)?;
    let place = |row: usize| {
        let (head, within) = (row / size, row % size);
        head * size + 2 * (within % (size / 2)) + within / (size / 2)
    };
    Some((0..rows).map(place).collect())
}

/// Returns transformers' row for each row of the GGUF file: the inverse of [`to_hf_rows`], with the
/// same `None`.
pub(crate) fn to_gguf_rows(rows: usize, heads: usize) -> Option<Vec<usize>> {
    let size = head_size(rows, heads)?;
    let place = |row: usize| {
        let (head, within) = (row / size, row % size);
        head * size + (within % 2) * (size / 2) + within / 2
    };
    Some((0..rows).map(place).collect())
}

fn head_size(rows: usize, heads: usize) -> Option<usize> {
    let size = rows.checked_div(heads)?;
    (size > 0 && size.is_multiple_of(2) && rows.is_multiple_of(heads)).then_some(size)
}

/// Returns `rows` reordered: row i of the result is row `order[i]`, each of `width` elements.
pub(super) fn sorted<T: Copy>(rows: &[T], width: usize, order: &[usize]) -> Vec<T> {
    let mut result = Vec::with_capacity(rows.len());
    for &row in order {
        result.extend_from_slice(&rows[row * width..(row + 1) * width]);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_orders_are_inverse() {
        // Two heads of six rows.
        assert_eq!(to_gguf_rows(12, 2).unwrap(), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(to_hf_rows(12, 2).unwrap(), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        let there = sorted(&[10, 11, 12, 13, 14, 15, 16, 17], 2, &to_gguf_rows(4, 1).unwrap());
        assert_eq!(there, [10, 11, 14, 15, 12, 13, 16, 17]);
        let back = sorted(&there, 2, &to_hf_rows(4, 1).unwrap());
        assert_eq!(back, [10, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        for (rows, heads) in [(12, 0), (12, 5), (6, 2), (0, 2)] {
            assert_eq!(to_hf_rows(rows, heads), None, "{rows} rows, {heads} heads");
            assert_eq!(to_gguf_rows(rows, heads), None, "{rows} rows, {heads} heads");
        }
    }
}
