// Options to TOML, and the difference of two.
#include <fmt/format.h>

#include "daemon/config/config.h"
#include "daemon/config/keys.h"

namespace dyna::config {
namespace {

constexpr std::string_view kHead =
    "# Configuration of dynacompressd. These are the defaults; every key may be left out.\n"
    "# 0 or \"\" fits the machine where the comment says so. Sizes are bytes or \"4 GiB\".\n"
    "# A key marked * is taken over on SIGHUP, the others need a restart.\n"
    "# Check a file with: dynacompressd --config FILE --check-config\n";

constexpr std::string_view kTenantExample =
    "\n# A tenant: its blocks, quota and attention history are its own. A uid that is named "
    "nowhere\n"
    "# is a tenant of its own without a quota.\n"
    "# [[tenants]]\n# name = \"team-a\"\n# uids = [1001, 1002]\n# quota_bytes = \"8 GiB\"\n";

template <typename T>
void PrintKey(const Key<T>& key, std::string_view name, const T& owner, std::string& out) {
  T copy = owner;  // rows give mutable fields
  out += fmt::format("#{} {}\n{} = {}\n", key.when == When::kReload ? "*" : "", key.help, name,
                     Format(key.rule, key.field(copy)));
}

std::string FormatTenants(const Options& options) {
  std::string out;
  for (const TenantOptions& tenant : options.tenants) {
    out += "\n[[tenants]]\n";
    for (const Key<TenantOptions>& key : TenantKeys()) PrintKey(key, key.name, tenant, out);
  }
  return out;
}

}  // namespace

std::string Print(const Options& options) {
  std::string out(kHead);
  std::string_view section;
  for (const Key<Options>& key : Keys()) {
    const size_t dot = key.name.find('.');
    if (key.name.substr(0, dot) != section) {
      section = key.name.substr(0, dot);
      out += fmt::format("\n[{}]\n", section);
    }
    PrintKey(key, key.name.substr(dot + 1), options, out);
  }
  return out + (options.tenants.empty() ? std::string(kTenantExample) : FormatTenants(options));
}

Options Reload(const Options& running, const Options& loaded, std::vector<Change>& changes) {
  Options result = running;
  Options from = loaded;
  for (const Key<Options>& key : Keys()) {
    const std::string before = Format(key.rule, key.field(result));
    const std::string after = Format(key.rule, key.field(from));
    if (before == after) continue;
    const bool applied = key.when == When::kReload;
    changes.push_back({std::string(key.name), before, after, applied});
    if (applied)
      std::visit([&](auto* to) { *to = *std::get<decltype(to)>(key.field(from)); },
                 key.field(result));
  }
  if (running.tenants != loaded.tenants) {
    changes.push_back({"tenants", fmt::format("{} tenants", running.tenants.size()),
                       fmt::format("{} tenants", loaded.tenants.size()), true});
    result.tenants = loaded.tenants;
  }
  return result;
}

}  // namespace dyna::config
