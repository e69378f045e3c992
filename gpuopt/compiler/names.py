"""Variable names of a rule made safe for every target language; used by all emitters so that their texts look alike."""

import keyword

_CPP = """alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr
const_cast continue decltype default delete do double dynamic_cast else enum explicit export extern false float for
friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
public register reinterpret_cast return short signed sizeof static static_assert static_cast struct switch template
this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor
xor_eq int64 uint64 half16 bfloat16 byte8 LANES ROLES SCALARS SUMS INPUTS Storage written out hyper threadIdx blockIdx
blockDim gridDim decode Encode Pack Chunk Roles Rows walk reduce prepare Decision pow log exp square_root absolute
select sign_of integer_power float_bits bits_float"""
_PYTHON = """C mul div sqrt sign minimum maximum absolute select update walk table tiles tile tile_size rows row record
word index numel head first begin end lo hi lane unit units body tile_count load_word load_scalar min range slot step
total bad norm
skipping inverse squares broken r c D ipow int64 hyper steps skip skipped chunk_count
max_norm scale grad_scale_value grad_scale found_inf
check_finite row_count partials cuda values load_double load_sum load_float store_row store_word shared at count"""
RESERVED = {*_CPP.split(), *_PYTHON.split(), *keyword.kwlist}


def safe(name: str) -> str:
    """The name itself where possible; with an underscore behind where it would mean something else."""
    name = "".join(c if c.isascii() else f"u{ord(c):x}" for c in name)
    clash = name in RESERVED or name.endswith("_") or name.startswith(("load_", "store_"))
    return name + "_" if clash or (name[:1] == "s" and name[1:].isdigit()) else name
