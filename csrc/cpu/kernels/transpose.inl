// A block of kWidth × kWidth lanes, transposed in registers.

#if defined(__clang__)
#define PFGM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PFGM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Whole{__VA_ARGS__})
#endif

/// One round of the transposition, of rows a and b = a + kHalf: lanes whose bit kHalf differs from their
/// row's change places.
template <int kHalf, int... lane>
inline void exchange_rows(Vector& a, Vector& b, std::integer_sequence<int, lane...>) {
  const Vector first = a, second = b;
  a = PFGM_SHUFFLE(first, second, (lane & kHalf ? kWidth + lane - kHalf : lane)...);
  b = PFGM_SHUFFLE(first, second, (lane & kHalf ? kWidth + lane : lane + kHalf)...);
}
#undef PFGM_SHUFFLE

template <int kHalf>
inline void exchange(Vector (&block)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i)
    if (!(i & kHalf))
      exchange_rows<kHalf>(block[i], block[i + kHalf], std::make_integer_sequence<int, kWidth>{});
}

/// In place: the kWidth × kWidth block of 32-bit lanes is transposed in log₂ kWidth rounds of pairwise
/// shuffles.
inline void transpose(Vector (&block)[kWidth]) {
  if constexpr (kWidth >= 16) exchange<8>(block);
  if constexpr (kWidth >= 8) exchange<4>(block);
  exchange<2>(block);
  exchange<1>(block);
}
