//! Checks how many lengths a page of delta-encoded texts claims to have. The parquet crate
//! allocates all of them before it reads the first, so pages are checked before the crate decodes
//! them.

use ::parquet::basic::{Encoding, Type as Physical};
use ::parquet::bloom_filter::Sbbf;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use ::parquet::file::reader::{FileReader, RowGroupReader};
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;

/// Number of lengths that any page may have. A page with more has at most one for each byte.
const FREE_LENGTHS: usize = 1 << 16;

/// A file reader that checks its pages.
pub(super) struct Checked<R>(pub R);

impl<R: FileReader> FileReader for Checked<R> {
    fn metadata(&self) -> &ParquetMetaData {
        self.0.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.0.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(CheckedGroup(self.0.get_row_group(i)?)))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct CheckedGroup<'a>(Box<dyn RowGroupReader + 'a>);

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let pages = self.0.get_column_page_reader(i)?;
        let column = self.metadata().column(i).column_descr();
        // Levels are stored only if they can be nonzero.
        let levels = usize::from(column.max_rep_level() > 0) + usize::from(column.max_def_level() > 0);
        let text = column.physical_type() == Physical::BYTE_ARRAY;
        Ok(Box::new(CheckedPages { pages, levels, text }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.0.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    levels: usize,
    text: bool,
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page
            && !sound(page, self.levels, self.text)
        {
            return Err(ParquetError::General("a page claims more values than its bytes can hold".into()));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}

/// Whether a page's bytes can hold the delta-encoded numbers that it claims.
fn sound(page: &Page, levels: usize, text: bool) -> bool {
    // Number of delta-encoded lists: one of numbers or text lengths, or two, the lengths of
    // prefixes shared with the previous text and the lengths of suffixes.
    let lists = match page.encoding() {
        Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => return true,
    };
    let most = FREE_LENGTHS.max(page.buffer().len());
    let Some(mut values) = values(page, levels) else { return false };
    (0..lists).all(|_| numbers(&mut values).is_some_and(|count| !text || count <= most))
}

/// Returns the bytes of a page after its levels.
fn values(page: &Page, levels: usize) -> Option<&[u8]> {
    match page {
        Page::DataPage { buf, .. } => {
            let mut values = &buf[..];
            for _ in 0..levels {
                let (length, rest) = values.split_first_chunk()?;
                values = rest.get(u32::from_le_bytes(*length) as usize..)?;
            }
            Some(values)
        }
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            buf.get(*def_levels_byte_len as usize + *rep_levels_byte_len as usize..)
        }
        Page::DictionaryPage { buf, .. } => Some(buf),
    }
}

/// Skips a list of delta-encoded numbers and returns their count; None if the list is cut off.
fn numbers(bytes: &mut &[u8]) -> Option<usize> {
    let (block, parts) = (varint(bytes)?, varint(bytes)?);
    let count = varint(bytes)?;
    varint(bytes)?;
    let part = block.checked_div(parts).filter(|part| *part > 0)?;
    // The header has the first number, and blocks have the others.
    let mut left = count.saturating_sub(1);
    while left > 0 {
        varint(bytes)?;
        let widths = bytes.split_off(..parts)?;
        for width in widths {
            if left == 0 {
                break;
            }
            let size = part.checked_mul(usize::from(*width))? / 8;
            bytes.split_off(..size)?;
            left = left.saturating_sub(part);
        }
    }
    Some(count)
}

fn varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return usize::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use ::parquet::basic::Encoding;

    use super::*;

    fn page(encoding: Encoding, bytes: &[u8]) -> Page {
        Page::DataPage {
            buf: bytes.to_vec().into(),
            num_values: 3,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        }
    }

    #[test]
    fn lists_of_lengths_are_followed() {
        // Blocks of 128 numbers in one miniblock; three numbers, the first 1; minimum delta 0, one
        // bit each: 16 bytes.
        let list = [&[0x80, 0x01, 1, 3, 2, 0, 1][..], &[0; 16]].concat();
        let (twice, cut) = ([&list[..], &list, b"abc"].concat(), &list[..list.len() - 1]);
        assert!(sound(&page(Encoding::DELTA_LENGTH_BYTE_ARRAY, &list), 0, true));
        assert!(sound(&page(Encoding::DELTA_BYTE_ARRAY, &twice), 0, true));
        assert!(!sound(&page(Encoding::DELTA_BYTE_ARRAY, &list), 0, true));
        assert!(!sound(&page(Encoding::DELTA_LENGTH_BYTE_ARRAY, cut), 0, true));
        let levels = [&[2, 0, 0, 0, 6, 1][..], &list].concat();
        assert!(sound(&page(Encoding::DELTA_LENGTH_BYTE_ARRAY, &levels), 1, true));
        assert!(sound(&page(Encoding::PLAIN, cut), 2, true));
    }

    #[test]
    fn counts_without_bytes_are_refused() {
        // One block for all numbers, with zero bits for each.
        let of = |count: u64| {
            let mut bytes = Vec::new();
            for mut number in [1 << 40, 1, count, 0, 0] {
                while number > 127 {
                    bytes.push(number as u8 | 128);
                    number >>= 7;
                }
                bytes.push(number as u8);
            }
            [bytes, vec![0]].concat()
        };
        let sound = |count, text| sound(&page(Encoding::DELTA_LENGTH_BYTE_ARRAY, &of(count)), 0, text);
        assert!(sound(60_000, true) && !sound(70_000, true) && !sound(1 << 39, true));
        // Numbers are read in batches, so their count needs no limit.
        assert!(sound(1 << 39, false));
        // More miniblocks than there are bytes for their widths.
        let parts = [0x80, 0x01, 0x80, 0x80, 0x80, 0x80, 0x10, 3, 2, 0];
        assert!(!super::sound(&page(Encoding::DELTA_BINARY_PACKED, &parts), 0, false));
    }
}
