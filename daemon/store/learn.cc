// The learned basis (policy 2): puts feed C, query windows feed M, a codec thread makes the basis.
#include <chrono>

#include "client/base/log.h"
#include "daemon/store/store_impl.h"

namespace dyna {

constexpr uint32_t kLearningAtOnce = 1;  // bases under way: the other codec threads keep serving

bool Store::Impl::LearningBudgetLeft(const StoreContext& ctx, int layer) const {
  // Before its first basis a layer learns from everything; afterwards within its share.
  if (ctx.learner.basis(layer) == nullptr) return true;
  return counts.learn_seconds <= options.learner.codec_share * (counts.codec_seconds + 1);
}

void Store::Impl::FeedTile(StoreContext& ctx, const wire::Put& put, int layer,
                           std::vector<uint32_t> count, std::vector<float> sum,
                           std::vector<float> scatter) {
  if (!ctx.learner.AddTile(layer, put.shard.head_begin, count, sum, scatter).ok()) return;
  for (uint32_t n : count) ctx.learned_tokens += n;
  StartLearning(ctx);
}

void Store::Impl::StartLearning(StoreContext& ctx) {
  for (int layer = 0; layer < static_cast<int>(ctx.spec.layers.size()); ++layer) {
    if (learning >= kLearningAtOnce) return;
    auto due = ctx.learner.Due(layer);
    if (!due) {
      if (ctx.learner.RowDue(layer) && bank != nullptr)
        bank->PutRow(ctx.learner.Row(layer, ctx.tenant), [](Status) {});
      continue;
    }
    ++learning;
    struct Job {
      DueBasis due;
      Result<std::shared_ptr<const Basis>> made = Internal("not made");
      double seconds = 0;
    };
    auto job = std::make_shared<Job>(Job{std::move(*due)});
    RunCodec(
        1u << 20,
        [job] {
          const auto start = std::chrono::steady_clock::now();
          job->made = job->due.Make();
          job->seconds =
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        },
        [this, job, &ctx, layer] {
          --learning;
          counts.learn_seconds += job->seconds;
          ctx.learn_seconds += job->seconds;
          ctx.learner.Done(layer, job->made);
          if (!job->made.ok())
            LogWarn("context {:016x} layer {}: no basis: {}", ctx.fingerprint, layer,
                    job->made.status().ToString());
          else if (*job->made)
            InstallBasis(ctx, layer, *job->made);
          StartLearning(ctx);
        });
  }
}

void Store::Impl::LearnOmega(StoreContext& ctx) {
  if (!ctx.traffic.Due() || options.policy.omega == OmegaGrain::kOff ||
      (!ctx.omega.empty() && !ctx.omega_learned))
    return;
  std::vector<std::shared_ptr<const Basis>> bases;
  for (size_t l = 0; l < ctx.spec.layers.size(); ++l)
    bases.push_back(ctx.learner.basis(static_cast<int>(l)));
  const auto cells = ctx.traffic.Take(bases);
  if (!cells) return;
  const Status taken = TakeOmega(ctx, *cells);
  ctx.omega_learned = taken.ok();
  if (taken.ok())
    LogInfo("context {:016x}: sensitivities measured on its traffic", ctx.fingerprint);
  else
    LogWarn("context {:016x}: no sensitivities of traffic: {}", ctx.fingerprint, taken.ToString());
}

Status Store::Impl::TakeOmega(StoreContext& ctx,
                              const std::vector<std::vector<CellSensitivity>>& cells) {
  std::vector<float> flat;
  for (const auto& layer : cells)
    for (const CellSensitivity& c : layer)
      flat.insert(flat.end(), {c.omega_k, c.omega_v, c.k_error_l4, c.k_error_l2});
  DYNA_RETURN_IF_ERROR(ctx.SetOmega(std::move(flat), options.policy.omega));
  ctx.omega_learned = false;
  RewriteContextRow(ctx);
  rebook = true;
  rebook_at.reset();
  NeedTick();
  return {};
}

void Store::Impl::InstallBasis(StoreContext& ctx, int layer, std::shared_ptr<const Basis> basis) {
  const BasisInfo& info = basis->info();
  if (info.source != BasisSource::kProfile) ++counts.bases_learned;
  LogInfo("context {:016x} layer {}: basis {:016x} from {} tokens and {} queries", ctx.fingerprint,
          layer, basis->name(), info.tokens, info.queries);
  ctx.AddBasis(std::move(basis));
  basis_bytes = 0;
  for (const auto& [key, other] : contexts) basis_bytes += other->basis_bytes();
  rebook = true;
  rebook_at.reset();
  NeedTick();
  LearnOmega(ctx);
}

}  // namespace dyna
