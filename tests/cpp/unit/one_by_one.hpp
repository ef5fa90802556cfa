#pragma once

#include "subspan/kernel_matvec.hpp"

/// Functions of kernel values, as one level has them: of one number, by way of all lanes.
template <class P>
struct one_by_one {
  P (*exp2_minus)(P);
  P (*exp2)(P);
  P (*log2_one_plus)(P);
  P (*value)(subspan::kernel_params const&, P);
  P (*slope)(subspan::kernel_params const&, P);
  void (*log_value)(subspan::kernel_params const&, P x, P* value, P* slope);  // where they exist
};
