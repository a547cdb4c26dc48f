#include "daemon/tier/spill_store.h"

#include <cassert>
#include <type_traits>

namespace dyna {

RowKey KeyOf(const record::Row& row) {
  return std::visit(
      [](const auto& r) -> RowKey {
        using T = std::decay_t<decltype(r)>;
        if constexpr (std::is_same_v<T, record::ContextRow>) {
          return {RowKey::Kind::kContext, r.tenant, r.context, 0};
        } else if constexpr (std::is_same_v<T, record::BasisRow>) {
          return {RowKey::Kind::kBasis, r.tenant, r.context, r.name};
        } else if constexpr (std::is_same_v<T, record::PriceRow>) {
          return {RowKey::Kind::kPrice, r.tenant, static_cast<uint64_t>(r.tier), 0};
        } else if constexpr (std::is_same_v<T, record::LearnerRow>) {
          return {RowKey::Kind::kLearner, r.tenant, r.context, r.layer};
        } else {
          assert(false && "a block has a BlockKey");
          return {};
        }
      },
      row);
}

}  // namespace dyna
