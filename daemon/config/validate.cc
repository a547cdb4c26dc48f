// What no single key can say.
#include <arpa/inet.h>
#include <fmt/format.h>

#include <set>

#include "daemon/config/config.h"

namespace dyna::config {
namespace {

constexpr size_t kMaxSocketPath = 107;  // sockaddr_un
constexpr size_t kMaxTenantName = 64;

bool IsAddress(const std::string& text) {
  unsigned char bytes[sizeof(in6_addr)];
  return inet_pton(AF_INET, text.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

Status CheckTenants(const std::vector<TenantOptions>& tenants) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
  std::set<std::string_view> names;
  std::set<uint32_t> uids;
  for (const TenantOptions& tenant : tenants) {
    if (tenant.name.empty() || tenant.name.size() > kMaxTenantName ||
        tenant.name.find_first_not_of(kAllowed) != std::string::npos)
      return Invalid(fmt::format("tenants.name: \"{}\" is not 1..{} of a-z A-Z 0-9 _ -",
                                 tenant.name.substr(0, kMaxTenantName), kMaxTenantName));
    if (!names.insert(tenant.name).second)
      return Invalid(fmt::format("tenants.name: {} is there twice", tenant.name));
    if (tenant.uids.empty())
      return Invalid(fmt::format("tenants.uids: tenant {} has none", tenant.name));
    for (const uint32_t uid : tenant.uids)
      if (!uids.insert(uid).second)
        return Invalid(fmt::format("tenants.uids: {} belongs to two tenants", uid));
  }
  return {};
}

}  // namespace

Status Validate(const Options& options) {
  if (options.server.socket.size() > kMaxSocketPath)
    return Invalid(fmt::format("server.socket: longer than {} bytes", kMaxSocketPath));
  for (const auto& [key, path] : {std::pair{"server.socket", &options.server.socket},
                                  {"server.state_dir", &options.server.state_dir},
                                  {"spill.dir", &options.spill.dir},
                                  {"bank.dir", &options.bank.dir},
                                  {"log.file", &options.log.file}})
    if (!path->empty() && path->front() != '/')
      return Invalid(fmt::format("{}: {} is no absolute path", key, *path));
  if (!options.spill.dir.empty() && options.spill.dir == options.bank.dir)
    return Invalid("bank.dir: is the same folder as spill.dir, which is disposable");
  if (!IsAddress(options.admin.address))
    return Invalid(fmt::format("admin.address: \"{}\" is no numeric IP address",
                               options.admin.address.substr(0, 64)));
  if (options.leases.ttl_ms > options.leases.max_ttl_ms)
    return Invalid("leases.ttl_ms: is above leases.max_ttl_ms");
  if (options.ucx.enabled && options.ucx.tls.empty()) return Invalid("ucx.tls: is empty");
  return CheckTenants(options.tenants);
}

}  // namespace dyna::config
