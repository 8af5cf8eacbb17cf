//! Matrix products on plain slices: the one safe door to the `gemm` crate, whose kernels run at 85–95 % of a core's
//! peak on every shape of a small transformer, strided or transposed.
#![allow(unsafe_code)]

/// A matrix inside a slice, to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'values> {
    values: &'values [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A matrix inside a slice, to write: rows of adjacent numbers.
#[derive(Debug)]
pub(super) struct MatrixMut<'values> {
    values: &'values mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

/// Whether the last element of a matrix is inside `length` numbers. Every stride and extent is then small enough for
/// `isize`, because a slice of f32 has fewer than `isize::MAX / 4` elements.
fn fits(length: usize, [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> bool {
    if rows == 0 || columns == 0 {
        return false;
    }
    let last = (rows - 1)
        .checked_mul(row_stride)
        .zip((columns - 1).checked_mul(column_stride))
        .and_then(|(row, column)| row.checked_add(column));
    row_stride <= length && column_stride <= length && last.is_some_and(|last| last < length)
}

impl<'values> Matrix<'values> {
    /// Adjacent rows.
    pub fn new(values: &'values [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows of adjacent numbers that start `row_stride` numbers apart.
    ///
    /// # Panics
    /// When the matrix is empty or reaches beyond `values`.
    pub fn strided(values: &'values [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let row_stride = if rows == 1 { columns } else { row_stride };
        assert!(fits(values.len(), [rows, columns], [row_stride, 1]), "a matrix lies inside its slice");
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// Its rows in a range.
    ///
    /// # Panics
    /// When the range is empty or not all of it are rows.
    pub fn rows(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start < range.end && range.end <= self.rows, "the range is of rows of the matrix");
        Self { values: &self.values[range.start * self.row_stride..], rows: range.len(), ..self }
    }

    /// Its transpose, without moving a number.
    pub fn t(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

impl<'values> MatrixMut<'values> {
    /// Adjacent rows.
    pub fn new(values: &'values mut [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows of adjacent numbers that start `row_stride` numbers apart.
    ///
    /// # Panics
    /// When the matrix is empty, its rows overlap, or it reaches beyond `values`.
    pub fn strided(values: &'values mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        let row_stride = if rows == 1 { columns } else { row_stride };
        assert!(fits(values.len(), [rows, columns], [row_stride, 1]), "a matrix lies inside its slice");
        assert!(columns <= row_stride, "rows do not overlap");
        Self { values, rows, columns, row_stride }
    }
}

/// Writes some columns of adjacent rows as rows: `out` gets `weights`' columns from `first` on, as many as it has room for.
///
/// Products with a matrix that lies the wrong way turn it piece by piece, again for each product; turning it once is a
/// quarter of their time less where it has many.
///
/// # Panics
/// When there are not so many columns.
pub(super) fn transpose(weights: &[f32], columns: usize, first: usize, out: &mut [f32]) {
    /// Numbers a side of what is turned at a time: a cache line.
    const SIDE: usize = 16;
    let rows = weights.len() / columns;
    for (first, lines) in (first..).step_by(SIDE).zip(out.chunks_mut(SIDE * rows)) {
        for (from, block) in weights.chunks(SIDE * columns).enumerate() {
            for (column, line) in (first..).zip(lines.chunks_exact_mut(rows)) {
                for (target, row) in line[from * SIDE..].iter_mut().zip(block.chunks_exact(columns)) {
                    *target = row[column];
                }
            }
        }
    }
}

/// Rows of a symmetric product that are computed together.
const SYMMETRIC_ROWS: usize = 64;

/// `out ← keep · out + scale · a × b` for adjacent rows, where both `out` before and the product are symmetric: only
/// what is left of the diagonal is computed.
///
/// # Panics
/// When the shapes do not fit each other.
pub(super) fn symmetric_matmul(out: &mut [f32], keep: f32, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    let size = a.rows;
    assert_eq!([out.len(), b.columns], [size * size, size], "a symmetric product is square");
    for from in (0..size).step_by(SYMMETRIC_ROWS) {
        let to = (from + SYMMETRIC_ROWS).min(size);
        let band = MatrixMut::strided(&mut out[from * size..], to - from, to, size);
        matmul(band, keep, scale, a.rows(from..to), b.t().rows(0..to).t());
        let (above, band) = out.split_at_mut(from * size);
        for (column, row) in (from..to).zip(band.chunks_exact(size)) {
            for (target, &value) in above.chunks_exact_mut(size).zip(row) {
                target[column] = value;
            }
        }
    }
}

/// `out ← keep · out + scale · a × b` on the calling thread; with `keep` zero whatever was in `out` is not read.
///
/// # Panics
/// When the shapes do not fit each other.
pub(super) fn matmul(out: MatrixMut<'_>, keep: f32, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!([out.rows, out.columns, a.columns], [a.rows, b.columns, b.rows], "shapes of a product fit each other");
    #[expect(clippy::cast_possible_wrap, reason = "strides are at most a slice's length (see `fits`)")]
    let signed = |stride: usize| stride as isize;
    // SAFETY: gemm reads `a` (rows × inner) and `b` (inner × columns) and writes `out` (rows × columns), each at
    // offsets row · row_stride + column · column_stride with row and column below the extents passed. The constructors
    // have checked that the largest such offset lies inside the slice, strides are not negative, and the assertion
    // above that the extents passed are those checked. `out` is borrowed exclusively, so it overlaps neither input,
    // and the fields of both types are private to this file.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.values.as_mut_ptr(),
            1,
            signed(out.row_stride),
            keep != 0.0,
            a.values.as_ptr(),
            signed(a.column_stride),
            signed(a.row_stride),
            b.values.as_ptr(),
            signed(b.column_stride),
            signed(b.row_stride),
            keep,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(length: usize, seed: usize) -> Vec<f32> {
        (0..length).map(|at| ((at * 31 + seed * 17) % 13) as f32 - 6.0).collect()
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_definition(
            (rows, inner, columns) in (1usize..20, 1usize..20, 1usize..20),
            gap in 0usize..4,
            (a_turned, b_turned) in any::<(bool, bool)>(),
            keep in prop::sample::select(vec![0.0f32, 1.0, 2.0]),
        ) {
            let (a, b, before) =
                (values(rows * (inner + gap) + inner * gap, 1), values(inner * columns, 2), values(rows * (columns + gap), 3));
            let left = if a_turned {
                Matrix::strided(&a, inner, rows, rows).t()
            } else {
                Matrix::strided(&a, rows, inner, inner + gap)
            };
            let right = if b_turned { Matrix::new(&b, columns, inner).t() } else { Matrix::new(&b, inner, columns) };
            let mut out = before.clone();
            matmul(MatrixMut::strided(&mut out, rows, columns, columns + gap), keep, 0.5, left, right);
            let at = |m: Matrix, row: usize, column: usize| m.values[row * m.row_stride + column * m.column_stride];
            for (index, (&after, &before)) in out.iter().zip(&before).enumerate() {
                let (row, column) = (index / (columns + gap), index % (columns + gap));
                // All numbers are small integers and halves: exact in f32.
                let expected = if column < columns {
                    let product: f32 = (0..inner).map(|i| at(left, row, i) * at(right, i, column)).sum();
                    keep * before + 0.5 * product
                } else {
                    before
                };
                prop_assert_eq!(after, expected);
            }
        }
    }

    #[test]
    fn a_transpose_has_rows_for_columns() {
        for (rows, columns) in [(1, 1), (3, 17), (40, 5), (33, 64)] {
            let matrix = values(rows * columns, 1);
            for first in [0, columns / 2] {
                let mut out = vec![f32::NAN; (columns - first) * rows];
                transpose(&matrix, columns, first, &mut out);
                for (column, line) in (first..columns).zip(out.chunks_exact(rows)) {
                    assert!(line.iter().zip(matrix.chunks_exact(columns)).all(|(out, row)| *out == row[column]));
                }
            }
        }
    }

    #[test]
    fn symmetric_products_are_products() {
        for (size, inner) in [(1, 3), (64, 5), (65, 7), (150, 90)] {
            let a = values(size * inner, 1);
            let a = Matrix::new(&a, size, inner);
            let mut square = vec![0.0; size * size];
            matmul(MatrixMut::new(&mut square, size, size), 0.0, 1.0, a, a.t());
            let mut ours = vec![f32::NAN; size * size];
            symmetric_matmul(&mut ours, 0.0, 1.0, a, a.t());
            assert_eq!(ours, square);
            matmul(MatrixMut::new(&mut square, size, size), 2.0, 0.5, a, a.t());
            symmetric_matmul(&mut ours, 2.0, 0.5, a, a.t());
            assert_eq!(ours, square);
        }
    }

    #[test]
    fn a_matrix_beyond_its_slice_is_refused() {
        let refused = |rows, columns, stride| {
            std::panic::catch_unwind(move || Matrix::strided(&[0.0; 12], rows, columns, stride).rows).is_err()
        };
        assert!(!refused(3, 4, 4) && !refused(2, 4, 8) && !refused(1, 12, 0));
        assert!(refused(4, 4, 4) && refused(0, 4, 4) && refused(3, 0, 4) && refused(2, 4, 9));
        assert!(refused(2, 2, usize::MAX) && refused(usize::MAX, 2, 2) && refused(2, usize::MAX, 1));
    }
}
