// add_rms_norm and rms_norm: norm.h without centring and without a bias.
#include "norm.h"

namespace ivcl {
namespace {

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps) {
  return add_norm<false>(x, residual, weight, nullptr, eps);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, ScalarType dtype) {
  return norm<false>(x, weight, nullptr, eps, dtype);
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_backward(const std::optional<Tensor>& dsum,
                                                         const Tensor& dnormed, const Tensor& sum,
                                                         const Tensor& weight, double eps,
                                                         ScalarType x_dtype) {
  return norm_backward<false>(dsum, dnormed, sum, weight, eps, x_dtype);
}

IVCL_OP(add_rms_norm)
IVCL_OP(add_rms_norm_backward)
IVCL_OP(rms_norm)

}  // namespace
}  // namespace ivcl
