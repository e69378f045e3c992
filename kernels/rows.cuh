// Where an element lies that a walk is at. A walk counts elements from 0 on; of a tensor of which all rows are stepped they lie in that
// order. Where only some are (U::PICKED), a record of the table ends with PICKED numbers, and a walk counts the elements of these rows,
// one row behind the other:
//
//   OF_INDICES   address of the numbers of the rows, int64; each once
//   OF_HEIGHT    rows of the tensor: a row from there on, or below 0, is left out, for nobody has looked at the numbers
//   OF_COMPACT   whether the gradient has the rows that are stepped and no others, in their order
//
// COL_NUMEL is then the count of the elements to walk, COL_WIDTH that of a row, and there is no head.
#pragma once

// i: in the arrays of a tensor; g: in its gradient; row: of the tensor; there: whether there is such an element.
struct Place { int64 i, g, row; bool there; };

// Element `column` of the row-th row of `width`, both counted by a walk; end: of the tensor's record.
template <bool PICKED> __device__ __forceinline__ Place place_in_row(const int64* end, int64 row, int64 width, int64 column) {
  const int64 counted = row * width + column;
  if constexpr (PICKED) {
    const int64 picked = reinterpret_cast<const int64*>(end[OF_INDICES])[row], i = picked * width + column;
    return {i, end[OF_COMPACT] ? counted : i, picked, picked >= 0 && picked < end[OF_HEIGHT]};
  }
  return {counted, counted, row, true};
}

// Element `counted`, and those behind it of one pack.
template <bool PICKED> __device__ __forceinline__ Place place_of(const int64* end, int64 width, int64 counted) {
  if constexpr (PICKED) {
    const int64 row = quotient(counted, width);
    return place_in_row<true>(end, row, width, counted - row * width);
  }
  return {counted, counted, 0, true};
}
