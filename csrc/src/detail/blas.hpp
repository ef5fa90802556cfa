#pragma once

/// THE BLAS / LAPACK seam: the only declarations of vendor symbols in the library. The bundled
/// OpenBLAS carries a prefix (scipy_), a system LAPACK none; the object code is otherwise the same.
/// Matrices are column-major, integers 32-bit.

#include <cstddef>
#include <cstdint>

#ifndef SUBSPAN_BLAS_PREFIX
#define SUBSPAN_BLAS_PREFIX
#endif
#define SUBSPAN_JOIN_(a, b) a##b
#define SUBSPAN_JOIN(a, b) SUBSPAN_JOIN_(a, b)
#define SUBSPAN_LAPACK(name) SUBSPAN_JOIN(SUBSPAN_BLAS_PREFIX, name##_)

namespace subspan::detail {

/// Name of the library behind the seam, for show_config.
char const* blas_name() noexcept;

/// Every vendor call happens within the life of one of these. Our private BLAS runs on one thread:
/// parallelism is over matrices and tiles, on our pool, and bits do not depend on the threads. Only
/// a single large call may raise its threads, which excludes all other vendor calls meanwhile.
class blas_scope {
 public:
  explicit blas_scope(int threads = 1);
  ~blas_scope();
  blas_scope(blas_scope const&) = delete;
  blas_scope& operator=(blas_scope const&) = delete;

 private:
  bool raised_;
};

}  // namespace subspan::detail

extern "C" {
using subspan_int = std::int32_t;

// Hidden lengths of character arguments follow as size_t (the Fortran convention of GCC).
#define SUBSPAN_DECLARE(T, p)                                                                      \
  void SUBSPAN_LAPACK(p##gesdd)(char const* jobz, subspan_int const* m, subspan_int const* n,      \
                                T* a, subspan_int const* lda, T* s, T* u, subspan_int const* ldu,  \
                                T* vt, subspan_int const* ldvt, T* work, subspan_int const* lwork, \
                                subspan_int* iwork, subspan_int* info, std::size_t);               \
  void SUBSPAN_LAPACK(p##gesvd)(                                                                   \
      char const* jobu, char const* jobvt, subspan_int const* m, subspan_int const* n, T* a,       \
      subspan_int const* lda, T* s, T* u, subspan_int const* ldu, T* vt, subspan_int const* ldvt,  \
      T* work, subspan_int const* lwork, subspan_int* info, std::size_t, std::size_t);             \
  void SUBSPAN_LAPACK(p##syevd)(char const* jobz, char const* uplo, subspan_int const* n, T* a,    \
                                subspan_int const* lda, T* w, T* work, subspan_int const* lwork,   \
                                subspan_int* iwork, subspan_int const* liwork, subspan_int* info,  \
                                std::size_t, std::size_t);                                         \
  void SUBSPAN_LAPACK(p##syevr)(                                                                   \
      char const* jobz, char const* range, char const* uplo, subspan_int const* n, T* a,           \
      subspan_int const* lda, T const* vl, T const* vu, subspan_int const* il,                     \
      subspan_int const* iu, T const* abstol, subspan_int* m, T* w, T* z, subspan_int const* ldz,  \
      subspan_int* isuppz, T* work, subspan_int const* lwork, subspan_int* iwork,                  \
      subspan_int const* liwork, subspan_int* info, std::size_t, std::size_t, std::size_t);        \
  void SUBSPAN_LAPACK(p##geqrf)(subspan_int const* m, subspan_int const* n, T* a,                  \
                                subspan_int const* lda, T* tau, T* work, subspan_int const* lwork, \
                                subspan_int* info);                                                \
  void SUBSPAN_LAPACK(p##orgqr)(subspan_int const* m, subspan_int const* n, subspan_int const* k,  \
                                T* a, subspan_int const* lda, T const* tau, T* work,               \
                                subspan_int const* lwork, subspan_int* info);                      \
  void SUBSPAN_LAPACK(p##potrf)(char const* uplo, subspan_int const* n, T* a,                      \
                                subspan_int const* lda, subspan_int* info, std::size_t);           \
  void SUBSPAN_LAPACK(p##trsm)(char const* side, char const* uplo, char const* transa,             \
                               char const* diag, subspan_int const* m, subspan_int const* n,       \
                               T const* alpha, T const* a, subspan_int const* lda, T* b,           \
                               subspan_int const* ldb, std::size_t, std::size_t, std::size_t,      \
                               std::size_t);                                                       \
  void SUBSPAN_LAPACK(p##gemm)(char const* transa, char const* transb, subspan_int const* m,       \
                               subspan_int const* n, subspan_int const* k, T const* alpha,         \
                               T const* a, subspan_int const* lda, T const* b,                     \
                               subspan_int const* ldb, T const* beta, T* c,                        \
                               subspan_int const* ldc, std::size_t, std::size_t);
SUBSPAN_DECLARE(float, s)
SUBSPAN_DECLARE(double, d)
#undef SUBSPAN_DECLARE
}

namespace subspan::detail {

// One overload set per routine, so that templates need no type switch.
#define SUBSPAN_OVERLOAD(T, p)                                                                     \
  inline void gesdd(char jobz, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* vt, int ldvt,  \
                    T* work, int lwork, int* iwork, int& info) {                                   \
    SUBSPAN_LAPACK(p##gesdd)                                                                       \
    (&jobz, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);                \
  }                                                                                                \
  inline void gesvd(char job, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* vt, int ldvt,   \
                    T* work, int lwork, int& info) {                                               \
    SUBSPAN_LAPACK(p##gesvd)                                                                       \
    (&job, &job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, &info, 1, 1);               \
  }                                                                                                \
  inline void syevd(char jobz, char uplo, int n, T* a, int lda, T* w, T* work, int lwork,          \
                    int* iwork, int liwork, int& info) {                                           \
    SUBSPAN_LAPACK(p##syevd)                                                                       \
    (&jobz, &uplo, &n, a, &lda, w, work, &lwork, iwork, &liwork, &info, 1, 1);                     \
  }                                                                                                \
  /* Eigenpairs il..iu (from 1, ascending). */                                                     \
  inline void syevr(char jobz, char uplo, int n, T* a, int lda, int il, int iu, T* w, T* z,        \
                    int ldz, int* isuppz, T* work, int lwork, int* iwork, int liwork, int& info) { \
    char const range = 'I';                                                                        \
    T const unused = 0, abstol = 0;                                                                \
    int found = 0;                                                                                 \
    SUBSPAN_LAPACK(p##syevr)                                                                       \
    (&jobz, &range, &uplo, &n, a, &lda, &unused, &unused, &il, &iu, &abstol, &found, w, z, &ldz,   \
     isuppz, work, &lwork, iwork, &liwork, &info, 1, 1, 1);                                        \
  }                                                                                                \
  inline void geqrf(int m, int n, T* a, int lda, T* tau, T* work, int lwork, int& info) {          \
    SUBSPAN_LAPACK(p##geqrf)(&m, &n, a, &lda, tau, work, &lwork, &info);                           \
  }                                                                                                \
  inline void orgqr(int m, int n, int k, T* a, int lda, T const* tau, T* work, int lwork,          \
                    int& info) {                                                                   \
    SUBSPAN_LAPACK(p##orgqr)(&m, &n, &k, a, &lda, tau, work, &lwork, &info);                       \
  }                                                                                                \
  inline void potrf(char uplo, int n, T* a, int lda, int& info) {                                  \
    SUBSPAN_LAPACK(p##potrf)(&uplo, &n, a, &lda, &info, 1);                                        \
  }                                                                                                \
  inline void trsm(char side, char uplo, char trans, char diag, int m, int n, T const* a, int lda, \
                   T* b, int ldb) {                                                                \
    T const one = 1;                                                                               \
    SUBSPAN_LAPACK(p##trsm)                                                                        \
    (&side, &uplo, &trans, &diag, &m, &n, &one, a, &lda, b, &ldb, 1, 1, 1, 1);                     \
  }                                                                                                \
  /* c = op(a) op(b) */                                                                            \
  inline void gemm(char transa, char transb, int m, int n, int k, T const* a, int lda, T const* b, \
                   int ldb, T* c, int ldc) {                                                       \
    T const one = 1, zero = 0;                                                                     \
    SUBSPAN_LAPACK(p##gemm)                                                                        \
    (&transa, &transb, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc, 1, 1);                  \
  }
SUBSPAN_OVERLOAD(float, s)
SUBSPAN_OVERLOAD(double, d)
#undef SUBSPAN_OVERLOAD

}  // namespace subspan::detail
