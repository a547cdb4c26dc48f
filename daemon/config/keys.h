// The table of keys: one row drives reading, range checks, printing, the comments of
// deploy/dynacompressd.toml and reload. A new option is a field in options.h and a row in keys.cc.
// Constant data; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "daemon/config/options.h"
#include "schemas/status.h"

namespace dyna::config {

using Field = std::variant<bool*, uint16_t*, uint32_t*, uint64_t*, double*, std::string*,
                           std::vector<uint32_t>*>;

enum class Unit : uint8_t { kPlain, kBytes };  // kBytes also reads "4 GiB"
enum class When : uint8_t { kRestart, kReload };

// What a value must be. Numbers: min..max. Strings: one of `choices` ("a|b"), or anything
// printable.
struct Rule {
  double min = 0;
  double max = 0;
  std::string_view choices = "";
  Unit unit = Unit::kPlain;
};

template <typename T>
struct Key {
  std::string_view name;  // "arena.bytes"
  Field (*field)(T&);
  Rule rule;
  When when;
  std::string_view help;  // the comment above the field in options.h, word for word
};

std::span<const Key<Options>> Keys();
std::span<const Key<TenantOptions>> TenantKeys();  // names without "tenants."

inline constexpr size_t kMaxTenants = 100;
inline constexpr size_t kMaxUids = 1024;
inline constexpr size_t kMaxText = 4096;

// Checks `value` against the row and stores it. The message names the key and what is allowed.
Status Assign(std::string_view key, const Rule& rule, Field field, bool value);
Status Assign(std::string_view key, const Rule& rule, Field field, int64_t value);
Status Assign(std::string_view key, const Rule& rule, Field field, double value);
Status Assign(std::string_view key, const Rule& rule, Field field, const std::string& value);
Status Assign(std::string_view key, const Rule& rule, Field field,
              const std::vector<int64_t>& value);

// The value as TOML: 64, "4 GiB", true, [0, 1000].
std::string Format(const Rule& rule, Field field);

// The known key with the fewest edits from `name`, or "" when none is near.
std::string NearestKey(std::string_view name, std::span<const std::string_view> known);

// "4 GiB", "512MB", "1000": bytes, at most 2^62.
Result<uint64_t> ParseBytes(std::string_view text);
// The largest binary unit that divides it: 4294967296 -> "4 GiB", 1000 -> "1000".
std::string FormatBytes(uint64_t bytes);

}  // namespace dyna::config
