#pragma once

/// \file
/// subspan: finding, comparing, encoding and compressing subspaces of features.
///
/// Every primitive is a stateless function `f(context, inputs..., outputs..., params)`. Inputs and
/// outputs are strided_view windows on memory that the caller owns; scratch comes from the
/// context's allocator; work runs on the library's thread pool or on the context's executor; every
/// failure is a subspan::error with a kind. Results have the same bits for any number of threads
/// unless a header says otherwise.

#include "subspan/adam.hpp"
#include "subspan/cholesky.hpp"
#include "subspan/context.hpp"
#include "subspan/decode.hpp"
#include "subspan/device.hpp"
#include "subspan/eigh.hpp"
#include "subspan/encode.hpp"
#include "subspan/error.hpp"
#include "subspan/gram.hpp"
#include "subspan/joint_kernel_sums.hpp"
#include "subspan/kernel_matvec.hpp"
#include "subspan/knn.hpp"
#include "subspan/mttkrp.hpp"
#include "subspan/pca.hpp"
#include "subspan/qr.hpp"
#include "subspan/ragged.hpp"
#include "subspan/random.hpp"
#include "subspan/solve_triangular.hpp"
#include "subspan/svd.hpp"
#include "subspan/tensor_power.hpp"
#include "subspan/topk.hpp"
#include "subspan/types.hpp"
#include "subspan/version.hpp"
#include "subspan/view.hpp"
