#include "schemas/wire.h"

namespace dyna::wire {

// The union's numbers, wire::Type and the order of Message are one and the same.
static_assert(std::variant_size_v<Message> == static_cast<size_t>(Type::kLeaseRevoked));
static_assert(std::is_same_v<std::variant_alternative_t<0, Message>, Hello>);
static_assert(std::is_same_v<std::variant_alternative_t<30, Message>, LeaseRevoked>);

Type TypeOf(const Message& message) { return static_cast<Type>(message.index() + 1); }

std::string_view TypeName(Type type) {
  static constexpr std::string_view kNames[] = {"?",
                                                "Hello",
                                                "HelloReply",
                                                "StatusReply",
                                                "OpenContext",
                                                "OpenContextReply",
                                                "RegisterRegion",
                                                "RegisterRegionReply",
                                                "DeregisterRegion",
                                                "Lookup",
                                                "LookupReply",
                                                "ReleaseLease",
                                                "Put",
                                                "PutReply",
                                                "Fetch",
                                                "FetchReply",
                                                "Report",
                                                "Delete",
                                                "Clear",
                                                "Pin",
                                                "CountReply",
                                                "GetBasis",
                                                "GetBasisReply",
                                                "PutOpaque",
                                                "GetOpaque",
                                                "OpaqueReply",
                                                "Query",
                                                "QueryReply",
                                                "SetBudget",
                                                "BankDrop",
                                                "Goaway",
                                                "LeaseRevoked"};
  static_assert(std::size(kNames) == std::variant_size_v<Message> + 1);
  const auto i = static_cast<size_t>(type);
  return i < std::size(kNames) ? kNames[i] : kNames[0];
}

}  // namespace dyna::wire
