// add_layer_norm and layer_norm: norm.h with centred rows and a bias.
#include "norm.h"

namespace ivcl {
namespace {

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& residual,
                                          const Tensor& weight, const Tensor& bias, double eps) {
  return add_norm<true>(x, residual, weight, &bias, eps);
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                  ScalarType dtype) {
  return norm<true>(x, weight, &bias, eps, dtype);
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_backward(const std::optional<Tensor>& dsum,
                                                           const Tensor& dnormed,
                                                           const Tensor& sum, const Tensor& weight,
                                                           double eps, ScalarType x_dtype) {
  return norm_backward<true>(dsum, dnormed, sum, weight, eps, x_dtype);
}

IVCL_OP(add_layer_norm)
IVCL_OP(add_layer_norm_backward)
IVCL_OP(layer_norm)

}  // namespace
}  // namespace ivcl
