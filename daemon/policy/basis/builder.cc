#include "daemon/policy/basis/builder.h"

#include <Eigen/Dense>
#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>

#include "kernels/codec_math.h"

namespace dyna {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Solver = Eigen::SelfAdjointEigenSolver<Matrix>;

constexpr double kRidge = 0.01;       // of M's mean diagonal (formats 1)
constexpr double kLargestHalf = 6e4;  // f16 ends at 65,504
// RMS of a row of B A - 1 after rounding; Basis::Parse refuses a pair far beyond it.
constexpr double kMostRounding = 0.06;
constexpr double kL2 = 2;

Matrix FromTriangle(const std::vector<float>& triangle, int d, double scale) {
  Matrix m(d, d);
  size_t at = 0;
  for (int i = 0; i < d; ++i)
    for (int j = i; j < d; ++j) m(i, j) = m(j, i) = double{triangle[at++]} * scale;
  return m;
}

void Average(Matrix* m, const Rope& rope, uint32_t reach) {
  AverageOverDistances({m->data(), static_cast<size_t>(m->size())}, static_cast<int>(m->rows()),
                       rope, reach);
}

// What one head asks of a basis: C, and M with its ridge, both averaged as the frame demands and
// scaled to a mean diagonal of 1 (which A and B do not depend on).
struct HeadProblem {
  Matrix c, m;
  double c_scale = 1;
};

// Fewer queries than channels say more of themselves than of M.
bool HasQueries(const CellMoments& cell, int d) { return cell.queries >= static_cast<uint32_t>(d); }

std::optional<HeadProblem> ProblemOf(const LayerMoments& moments, int head,
                                     const BasisRequest& request) {
  const CellMoments& cell = moments.cell(head);
  const int d = moments.head_dim();
  if (cell.tokens == 0) return std::nullopt;
  const uint32_t reach = ReachOf(request.shape, request.longest_chain);
  HeadProblem p;
  p.c = FromTriangle(cell.scatter, d, 1.0 / cell.tokens);
  if (moments.frame() == Frame::kPost) Average(&p.c, request.rope, reach);
  p.c_scale = p.c.trace() / d;
  if (!(p.c_scale > 0) || !std::isfinite(p.c_scale)) return std::nullopt;
  p.c /= p.c_scale;

  p.m = Matrix::Identity(d, d);
  if (HasQueries(cell, d)) {
    Matrix m = FromTriangle(cell.qq, d, 1.0 / cell.queries);
    Average(&m, request.rope, reach);
    const double scale = m.trace() / d;
    if (scale > 0 && std::isfinite(scale)) p.m = m / scale;
  }
  p.m.diagonal().array() += kRidge;
  return p;
}

double Half(double x) { return double{codec::F16ToF32(codec::F32ToF16(static_cast<float>(x)))}; }

// A and B survive f16: in range, and B still undoes A.
bool FitsHalves(const Matrix& a, const Matrix& b) {
  if (!(a.cwiseAbs().maxCoeff() < kLargestHalf && b.cwiseAbs().maxCoeff() < kLargestHalf))
    return false;
  const Matrix error =
      b.unaryExpr(&Half) * a.unaryExpr(&Half) - Matrix::Identity(a.rows(), a.cols());
  return error.rowwise().norm().maxCoeff() < kMostRounding;
}

std::vector<double> Values(const Matrix& m) { return {m.data(), m.data() + m.size()}; }

// A = U' M^(1/2), B = M^(-1/2) U, scaled so that the largest variance of y is 1.
std::optional<BasisHeadParts> HeadBasis(const HeadProblem& p, const std::vector<double>& mean) {
  const Solver m(p.m);
  if (m.info() != Eigen::Success || !(m.eigenvalues().minCoeff() > 0)) return std::nullopt;
  const Eigen::VectorXd root = m.eigenvalues().cwiseSqrt();
  const Matrix& v = m.eigenvectors();
  const Matrix up = v * root.asDiagonal() * v.transpose();
  const Matrix down = v * root.cwiseInverse().asDiagonal() * v.transpose();
  Matrix w = up * p.c * up;
  w = (w + w.transpose()).eval() / 2;
  const Solver e(w);
  if (e.info() != Eigen::Success) return std::nullopt;
  const Eigen::VectorXd variances = e.eigenvalues().reverse().cwiseMax(0.0);
  const Matrix u = e.eigenvectors().rowwise().reverse();
  if (!(variances[0] > 0)) return std::nullopt;
  const double scale = std::sqrt(variances[0] * p.c_scale);
  const Matrix a = u.transpose() * up / scale;
  const Matrix b = down * u * scale;
  if (!a.allFinite() || !b.allFinite() || !FitsHalves(a, b)) return std::nullopt;

  BasisHeadParts parts;
  for (double x : mean) {
    if (!(std::abs(x) < kLargestHalf)) return std::nullopt;
    parts.mu.push_back(x);
  }
  parts.a = Values(a);
  parts.b = Values(b);
  for (double x : variances) parts.variances.push_back(x / variances[0]);
  return parts;
}

Matrix FromFloats(const float* values, int d) {
  return Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
             values, d, d)
      .cast<double>();
}

}  // namespace

uint32_t ReachOf(const LayerShape& shape, uint32_t longest_chain) {
  constexpr uint32_t kLongest = 1u << 24;
  if (shape.kind == LayerKind::kSliding && shape.window > 0)
    return std::min(shape.window, kLongest);
  const uint32_t chain = std::clamp(longest_chain, uint32_t{kBlockTokens}, kLongest / 4);
  const uint32_t reach = std::bit_ceil(4 * chain);
  return shape.max_position > 0 ? std::min(reach, shape.max_position) : reach;
}

Result<std::shared_ptr<const Basis>> BuildBasis(const LayerMoments& moments,
                                                const BasisRequest& request) {
  BasisInfo info;
  info.fingerprint = request.fingerprint;
  info.layer = static_cast<uint16_t>(moments.layer());
  info.kv_heads = static_cast<uint16_t>(moments.kv_heads());
  info.head_dim = static_cast<uint16_t>(moments.head_dim());
  info.frame = moments.frame();
  info.run = static_cast<uint8_t>(request.attend ? 16 : DefaultRun(moments.head_dim()));
  info.tokens = moments.tokens();
  info.queries = moments.queries();
  info.source = info.queries >= info.head_dim ? BasisSource::kLearned : BasisSource::kKeys;

  std::vector<BasisHeadParts> heads(static_cast<size_t>(moments.kv_heads()));
  bool any = false;
  for (int h = 0; h < moments.kv_heads(); ++h) {
    const auto problem = ProblemOf(moments, h, request);
    if (!problem) continue;
    if (auto parts = HeadBasis(*problem, moments.cell(h).mean)) {
      heads[static_cast<size_t>(h)] = std::move(*parts);
      any = true;
    }
  }
  if (!any)
    return Invalid("basis of layer " + std::to_string(moments.layer()) +
                   ": what was seen of K is constant, too large or not finite in every head");
  return Basis::Build(info, heads);
}

void AverageOverDistances(std::span<double> m, int d, const Rope& rope, uint32_t reach) {
  if (rope.kind == RopeKind::kNone || reach <= 1) return;
  const int turning = rope.rotary_dim / 2, pairs = d / 2;
  // Channels of pair p and its frequency. What does not turn is paired as it comes, frequency 0.
  const auto x_of = [&](int p) {
    if (p >= turning) return 2 * p;
    return rope.kind == RopeKind::kHalf ? p : 2 * p;
  };
  const auto y_of = [&](int p) {
    if (p >= turning) return 2 * p + 1;
    return rope.kind == RopeKind::kHalf ? p + turning : 2 * p + 1;
  };
  const auto frequency = [&](int p) {
    return p < turning ? double{rope.inv_freq[static_cast<size_t>(p)]} : 0.0;
  };
  // Mean over D < reach of e^(i D t).
  struct Phase {
    double re, im;
  };
  const auto phi = [reach](double t) -> Phase {
    const double s = std::sin(t / 2);
    if (std::abs(s) < 1e-13) return {1, 0};
    const double size = std::sin(reach * t / 2) / (reach * s), angle = (reach - 1.0) * t / 2;
    return {size * std::cos(angle), size * std::sin(angle)};
  };
  const auto at = [&](int i, int j) -> double& {
    return m[static_cast<size_t>(i) * static_cast<size_t>(d) + static_cast<size_t>(j)];
  };
  for (int i = 0; i < pairs; ++i) {
    const int xi = x_of(i), yi = y_of(i);
    for (int j = i; j < pairs; ++j) {
      const int xj = x_of(j), yj = y_of(j);
      const double xx = at(xi, xj), yy = at(yi, yj), xy = at(xi, yj), yx = at(yi, xj);
      const Phase a = phi(frequency(i) - frequency(j)), b = phi(frequency(i) + frequency(j));
      // P = E[z_i conj z_j], Q = E[z_i z_j], each times its phase.
      const double p_re = (xx + yy) * a.re - (yx - xy) * a.im;
      const double p_im = (xx + yy) * a.im + (yx - xy) * a.re;
      const double q_re = (xx - yy) * b.re - (xy + yx) * b.im;
      const double q_im = (xx - yy) * b.im + (xy + yx) * b.re;
      at(xi, xj) = at(xj, xi) = (p_re + q_re) / 2;
      at(yi, yj) = at(yj, yi) = (p_re - q_re) / 2;
      at(xi, yj) = at(yj, xi) = (q_im - p_im) / 2;
      at(yi, xj) = at(xj, yi) = (q_im + p_im) / 2;
    }
  }
}

Result<double> PromisedError(const Basis& basis, const LayerMoments& moments,
                             const BasisRequest& request) {
  const int d = moments.head_dim();
  const BasisInfo& info = basis.info();
  if (info.head_dim != d || info.frame != moments.frame())
    return Invalid("basis: head_dim or frame is not that of the moments");
  double sum = 0;
  int heads = 0;
  for (int h = 0; h < moments.kv_heads(); ++h) {
    if (!basis.Covers(h) || !basis.seen(h)) continue;
    const auto p = ProblemOf(moments, h, request);
    if (!p) continue;
    const Matrix a = FromFloats(basis.a(h), d), b = FromFloats(basis.b(h), d);
    const Matrix covariance = a * p->c * a.transpose();  // of y
    const Matrix weight = b.transpose() * p->m * b;      // what an error of y costs
    const auto widths = basis.widths(h, basis.LevelOf(kL2));
    double error = 0;
    for (int i = 0; i < d; ++i) {
      const int width = widths[static_cast<size_t>(i / info.run)];
      error += weight(i, i) * covariance(i, i) * WidthError(width);
      // Channels that are not coded err together where they vary together.
      for (int j = 0; width == 0 && j < d; ++j)
        if (j != i && widths[static_cast<size_t>(j / info.run)] == 0)
          error += weight(i, j) * covariance(i, j);
    }
    sum += error / (p->m * p->c).trace();
    ++heads;
  }
  if (heads == 0) return Invalid("basis: no head is both seen and measured");
  return sum / heads;
}

}  // namespace dyna
