// Compiled once per level, inside the namespace of the level; no include guard on purpose. Needs
// detail/power_kernels.hpp and detail/vectors.inl.hpp.
//
// A lane runs one start of one tensor to its end, then takes the next. Arithmetic is elementwise, so
// that a run depends neither on the other lanes nor on whether they share its tensor.

template <class V, bool Own>
class power_lanes {
 public:
  using T = lane_type<V>;
  using C = std::conditional_t<Own, V, T>;  // a coefficient: one for each lane, or for all
  using M = lane_mask<V>;
  static constexpr index_t width = lane_count<V>, k_rows = detail::k_power_rows;

  static index_t padded(index_t pairs) { return (pairs + k_rows - 1) / k_rows * k_rows; }

  static index_t bytes(detail::power_space<T> const& s) {
    index_t const vectors = 4 * s.d + s.d * s.d + s.lower + s.monomials + padded(s.pairs);
    index_t const coefficients = padded(s.pairs) * s.monomials * static_cast<index_t>(sizeof(C));
    return vectors * static_cast<index_t>(sizeof(V)) + coefficients;
  }

  power_lanes(detail::power_task<T> const& task, void* memory)
      : task_(task), s_(*task.space), d_(s_.d) {
    V* at = static_cast<V*>(memory);
    auto const take = [&](index_t n) { return std::exchange(at, at + n); };
    x_ = take(d_), y_ = take(d_), r_ = take(d_), step_ = take(d_), factor_ = take(d_ * d_);
    lower_ = take(s_.lower), monomials_ = take(s_.monomials), h_ = take(padded(s_.pairs));
    coefficients_ = reinterpret_cast<C*>(at);
  }

  void run() {
    load_coefficients();
    for (index_t l = 0; l < width; ++l) {
      next_[l] = task_.begin;
      fetch(l);
    }
    while (any(active_)) {
      evaluate();
      M const fresh = judge();
      advance();
      if (any(fresh))
        for (index_t l = 0; l < width; ++l)
          if (fresh[l] != 0) fetch(l);
    }
  }

 private:
  // ---- what lanes work on -------------------------------------------------------------------

  void load_coefficients() {
    for (index_t row = 0; row < padded(s_.pairs); ++row) {
      C* const to = coefficients_ + row / k_rows * k_rows * s_.monomials + row % k_rows;
      for (index_t c = 0; c < s_.monomials; ++c) {
        C& out = to[c * k_rows];
        out = C{};
        if (row >= s_.pairs) continue;
        index_t const entry = s_.entry[row * s_.monomials + c] * task_.a_stride;
        if constexpr (Own)
          for (index_t l = 0; l < task_.count; ++l)
            out[l] = task_.a[l * task_.a_next + entry] * task_.scale[l] * s_.weight[c];
        else
          out = task_.a[entry] * task_.scale[0] * s_.weight[c];
      }
    }
  }

  /// Puts the next start into a lane, or takes the lane out of the work.
  void fetch(index_t l) {
    index_t const tensor = Own ? l : 0;
    index_t& next = next_[tensor];
    bool const some = tensor < task_.count && next < task_.end && task_.norm[tensor] > 0;
    active_[l] = some ? -1 : 0;
    index_t const run = run_[l] = some ? next++ : 0;
    T* const x = reinterpret_cast<T*>(x_) + l;
    sign_[l] = run < task_.flip ? 1 : -1;
    norm_[l] = some ? task_.norm[tensor] : T(1);
    shift_[l] = some ? s_.shift * task_.scale[tensor] : T(0);
    iteration_[l] = 0;
    boost_[l] = 1;
    before_[l] = -std::numeric_limits<T>::infinity();
    limit_[l] = std::numeric_limits<T>::infinity();
    newton_[l] = 0;
    if (!some) {
      for (index_t i = 0; i < d_; ++i) x[i * width] = i == 0;
      return;
    }
    T const* const from =
        task_.start + tensor * task_.start_next + run % task_.starts * task_.start_row;
    T most = 0, sum = 0;
    for (index_t i = 0; i < d_; ++i) most = std::max(most, std::abs(from[i * task_.start_column]));
    for (index_t i = 0; i < d_; ++i) {
      T const v = x[i * width] = from[i * task_.start_column] / most;
      sum += v * v;
    }
    T const length = std::sqrt(sum);
    for (index_t i = 0; i < d_; ++i) x[i * width] /= length;
  }

  void finish(index_t l, detail::run_state state) {
    index_t const tensor = Own ? l : 0, at = tensor * task_.runs + run_[l];
    T const scale = task_.scale[tensor];
    task_.out.value[at] = value_[l] * sign_[l] / scale;
    task_.out.residual[at] = residual_[l] / scale;
    task_.out.iterations[at] = static_cast<std::int32_t>(iteration_[l]);
    task_.out.state[at] = static_cast<std::int32_t>(state);
    for (index_t i = 0; i < d_; ++i) task_.out.x[at * d_ + i] = x_[i][l];
  }

  // ---- an iteration -------------------------------------------------------------------------

  /// H = a x^(order-2), y = H x, value = x y, r = y - value x, and sums of H.
  void evaluate() {
    powers();
    contract();
    V trace{}, squares{};
    for (index_t i = 0; i < d_; ++i) y_[i] = V{};
    for (index_t i = 0, at = 0; i < d_; ++i) {
      V const own = h_[at] *= sign_;
      V sum = own * x_[i], row{};
      trace += own;
      squares += own * own;
      V const xi = x_[i];
      ++at;
      for (index_t j = i + 1; j < d_; ++j, ++at) {
        V const h = h_[at] *= sign_;
        sum += h * x_[j];
        y_[j] += h * xi;
        row += h * h;
      }
      squares += 2 * row;
      y_[i] += sum;
    }
    V value{}, length{}, rest{};
    for (index_t i = 0; i < d_; ++i) value += x_[i] * y_[i];
    for (index_t i = 0; i < d_; ++i) {
      r_[i] = y_[i] - value * x_[i];
      rest += r_[i] * r_[i];
      length += y_[i] * y_[i];
    }
    value_ = value;
    residual_ = square_root(rest);
    trace_ = trace;
    squares_ = squares;
    length_ = length;
  }

  /// Monomials of degree order - 2: those of one degree less, times what may follow their last.
  void powers() {
    V const* from = x_;
    std::int32_t const* last = s_.last;
    V* lower = lower_;
    index_t count = d_;
    for (int degree = 2; degree <= s_.order - 2; ++degree) {
      V* const to = degree == s_.order - 2 ? monomials_ : lower;
      index_t made = 0;
      for (index_t c = 0; c < count; ++c)
        for (index_t j = last[c]; j < d_; ++j) to[made++] = from[c] * x_[j];
      last += count;
      lower += made;
      from = to;
      count = made;
    }
    if (s_.order == 3) std::copy_n(x_, d_, monomials_);
  }

  void contract() {
    index_t const n = s_.monomials;
    C const* g = coefficients_;
    for (index_t row = 0; row < s_.pairs; row += k_rows) {
      V sum[k_rows] = {};
      for (index_t c = 0; c < n; ++c, g += k_rows) {
        V const m = monomials_[c];
        for (index_t i = 0; i < k_rows; ++i) sum[i] += g[i] * m;
      }
      for (index_t i = 0; i < k_rows; ++i) h_[row + i] = sum[i];
    }
  }

  /// Writes what has come to its end, and says which lanes these are. Leaves Newton's step.
  M judge() {
    V const enough = s_.tol * norm_;
    M const spent = iteration_ >= static_cast<T>(s_.max_iter);
    M const small = residual_ <= enough;
    V const up =
        s_.adaptive ? all_lanes<V>(1) : (value_ + shift_ < 0 ? all_lanes<V>(-1) : all_lanes<V>(1));
    M const near = active_ & (small | (residual_ <= T(0.2) * magnitude(value_)));
    // A Newton step that neither went up nor halved the residual bars more of them for a while.
    M const better = (residual_ <= T(0.5) * last_) | (up * (value_ - before_) > T(0.25) * enough);
    limit_ = newton_ & ~better ? T(0.25) * last_ : limit_;
    last_ = residual_;
    newton_ = M{};
    if (!any(near)) {
      M const over = active_ & spent;
      if (any(over)) write(over, M{}, M{}, up);
      return over;
    }
    M const definite = factorize(up);
    solve(up);
    V step{};
    for (index_t i = 0; i < d_; ++i) step += step_[i] * step_[i];
    newton_ = near & definite & (residual_ < limit_);
    M const fine = near & (small | (definite & (step <= s_.least_step * s_.least_step)));
    // No step is longer than this.
    T const most = T(0.1);
    newton_length_ = step > most * most ? most / square_root(step) : all_lanes<V>(1);
    M const over = active_ & (fine | spent);
    if (any(over)) write(over, fine, definite, up);
    return over;
  }

  void write(M over, M fine, M definite, V up) {
    M opposite{};
    if (any(over & fine & ~definite)) opposite = factorize(-up);
    for (index_t l = 0; l < width; ++l) {
      if (over[l] == 0) continue;
      auto state = detail::run_state::exhausted;
      if (fine[l] != 0) {
        bool const found = definite[l] != 0 || opposite[l] != 0;
        bool const top = (definite[l] != 0) == (up[l] * sign_[l] > 0);
        state = !found ? detail::run_state::neither
                : top  ? detail::run_state::maximum
                       : detail::run_state::minimum;
      }
      finish(l, state);
    }
  }

  /// Cholesky factor of up (value - (order - 1) P H P) + c x x^T, P = 1 - x x^T, c such that x is an
  /// eigenvector to the norm of the tensor. True in lanes where it is positive definite.
  M factorize(V up) {
    T const k = static_cast<T>(s_.order - 1);
    V const c = norm_ - up * k * value_ - up * value_;
    for (index_t i = 0, at = 0; i < d_; ++i)
      for (index_t j = i; j < d_; ++j, ++at)
        factor_[j * d_ + i] = c * x_[i] * x_[j] - up * k * (h_[at] - x_[i] * y_[j] - y_[i] * x_[j]);
    V const enough = s_.newton * norm_;
    M definite = active_ == active_;
    for (index_t j = 0; j < d_; ++j) {
      V* const own = factor_ + j * d_;
      V pivot = own[j] + up * value_;
      for (index_t p = 0; p < j; ++p) pivot -= own[p] * own[p];
      definite &= pivot > enough;
      V const inverse = 1 / square_root(definite ? pivot : all_lanes<V>(1));
      own[j] = inverse;
      for (index_t i = j + 1; i < d_; ++i) {
        V* const row = factor_ + i * d_;
        V sum = row[j];
        for (index_t p = 0; p < j; ++p) sum -= row[p] * own[p];
        row[j] = sum * inverse;
      }
    }
    return definite;
  }

  void solve(V up) {
    for (index_t i = 0; i < d_; ++i) {
      V sum = up * r_[i];
      for (index_t p = 0; p < i; ++p) sum -= factor_[i * d_ + p] * step_[p];
      step_[i] = sum * factor_[i * d_ + i];
    }
    for (index_t i = d_ - 1; i >= 0; --i) {
      V sum = step_[i];
      for (index_t p = i + 1; p < d_; ++p) sum -= factor_[p * d_ + i] * step_[p];
      step_[i] = sum * factor_[i * d_ + i];
    }
  }

  /// A step of Newton's or of the power method, and back to the sphere.
  void advance() {
    V radial = value_ + shift_;
    if (s_.adaptive) {
      // Eigenvalues of P H P on the tangent space are at least mean - deviation sqrt(n - 1)
      // (Wolkowicz and Styan); the shift makes up for them and for the curvature along x.
      T const n = static_cast<T>(std::max<index_t>(d_ - 1, 1)), k = static_cast<T>(s_.order - 1);
      V const mean = (trace_ - value_) / n;
      V const variance = (squares_ - 2 * length_ + value_ * value_) / n - mean * mean;
      V const least = mean - square_root(larger(variance * (n - 1), V{}));
      V const shift = larger(larger(-k * least, -k * value_), V{}) + T(1e-6) * norm_;
      boost_ = value_ < before_ - s_.tol * norm_ ? 2 * boost_ : boost_;
      radial = boost_ * (value_ + shift);
    }
    before_ = value_;
    V sum{};
    for (index_t i = 0; i < d_; ++i) {
      x_[i] = newton_ ? x_[i] + newton_length_ * step_[i] : radial * x_[i] + r_[i];
      sum += x_[i] * x_[i];
    }
    V const inverse = 1 / square_root(sum);
    for (index_t i = 0; i < d_; ++i) x_[i] *= inverse;
    iteration_ += 1;
  }

  detail::power_task<T> const& task_;
  detail::power_space<T> const& s_;
  index_t d_;
  V *x_, *y_, *r_, *step_, *factor_, *lower_, *monomials_, *h_;
  C* coefficients_;
  V value_{}, residual_{}, trace_{}, squares_{}, length_{};
  V sign_{}, norm_{}, shift_{}, iteration_{}, boost_{}, before_{}, last_{}, limit_{};
  V newton_length_{};
  M active_{}, newton_{};
  index_t next_[width], run_[width];
};
