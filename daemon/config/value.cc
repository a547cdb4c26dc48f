// One value: its check, its text, and byte sizes. See keys.h.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <utility>

#include "daemon/config/keys.h"

namespace dyna::config {
namespace {

constexpr std::string_view kUnits[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi"};

Status Wrong(std::string_view key, std::string_view why) {
  return Invalid(fmt::format("{}: {}", key, why));
}

// A bound as the operator would write it.
std::string Bound(const Rule& rule, double value) {
  if (rule.unit == Unit::kBytes) return FormatBytes(static_cast<uint64_t>(value));
  return fmt::format("{:.12g}", value);
}

Status CheckRange(std::string_view key, const Rule& rule, double value) {
  if (value >= rule.min && value <= rule.max) return {};
  return Wrong(key, fmt::format("{:.12g} is outside {} .. {}", value, Bound(rule, rule.min),
                                Bound(rule, rule.max)));
}

// What the field holds, for "wants a ..., not a ...".
std::string Wanted(const Rule& rule, Field field) {
  return std::visit(
      [&](auto* p) -> std::string {
        using T = std::remove_pointer_t<decltype(p)>;
        if constexpr (std::is_same_v<T, bool>) return "true or false";
        if constexpr (std::is_same_v<T, double>) return "a number";
        if constexpr (std::is_same_v<T, std::string>) return "a string in quotes";
        if constexpr (std::is_same_v<T, std::vector<uint32_t>>) return "a list of whole numbers";
        return rule.unit == Unit::kBytes ? "bytes, as a whole number or \"4 GiB\""
                                         : "a whole number";
      },
      field);
}

Status WrongType(std::string_view key, const Rule& rule, Field field, std::string_view got) {
  return Wrong(key, fmt::format("wants {}, not {}", Wanted(rule, field), got));
}

bool IsChoice(std::string_view choices, std::string_view value) {
  while (!choices.empty()) {
    const size_t bar = std::min(choices.find('|'), choices.size());
    if (choices.substr(0, bar) == value) return true;
    choices.remove_prefix(std::min(bar + 1, choices.size()));
  }
  return false;
}

size_t Edits(std::string_view a, std::string_view b) {  // Levenshtein
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

Status Assign(std::string_view key, const Rule& rule, Field field, bool value) {
  bool** to = std::get_if<bool*>(&field);
  if (!to) return WrongType(key, rule, field, value ? "true" : "false");
  **to = value;
  return {};
}

Status Assign(std::string_view key, const Rule& rule, Field field, int64_t value) {
  return std::visit(
      [&](auto* to) -> Status {
        using T = std::remove_pointer_t<decltype(to)>;
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
          DYNA_RETURN_IF_ERROR(CheckRange(key, rule, static_cast<double>(value)));
          *to = static_cast<T>(value);
          return {};
        } else {
          return WrongType(key, rule, field, "a number");
        }
      },
      field);
}

Status Assign(std::string_view key, const Rule& rule, Field field, double value) {
  double** to = std::get_if<double*>(&field);
  if (!to) return WrongType(key, rule, field, "a fraction");
  DYNA_RETURN_IF_ERROR(CheckRange(key, rule, value));  // refuses NaN too
  **to = value;
  return {};
}

Status Assign(std::string_view key, const Rule& rule, Field field, const std::string& value) {
  if (rule.unit == Unit::kBytes) {
    Result<uint64_t> bytes = ParseBytes(value);
    if (!bytes.ok()) return Wrong(key, bytes.status().message());
    return Assign(key, rule, field, static_cast<int64_t>(*bytes));
  }
  std::string** to = std::get_if<std::string*>(&field);
  if (!to) return WrongType(key, rule, field, "a string");
  if (!rule.choices.empty() && !IsChoice(rule.choices, value))
    return Wrong(key, fmt::format("\"{}\" is none of {}", value.substr(0, 64), rule.choices));
  if (value.size() > kMaxText) return Wrong(key, fmt::format("longer than {} bytes", kMaxText));
  for (const unsigned char c : value)
    if (c < 0x20 || c == 0x7f) return Wrong(key, "holds a control character");
  **to = value;
  return {};
}

Status Assign(std::string_view key, const Rule& rule, Field field,
              const std::vector<int64_t>& value) {
  auto** to = std::get_if<std::vector<uint32_t>*>(&field);
  if (!to) return WrongType(key, rule, field, "a list");
  if (value.size() > kMaxUids) return Wrong(key, fmt::format("more than {} values", kMaxUids));
  std::vector<uint32_t> checked;
  for (const int64_t v : value) {
    DYNA_RETURN_IF_ERROR(CheckRange(key, rule, static_cast<double>(v)));
    checked.push_back(static_cast<uint32_t>(v));
  }
  **to = std::move(checked);
  return {};
}

std::string Format(const Rule& rule, Field field) {
  return std::visit(
      [&](auto* p) -> std::string {
        using T = std::remove_pointer_t<decltype(p)>;
        if constexpr (std::is_same_v<T, std::string>) {
          std::string quoted = "\"";
          for (const char c : *p) {
            if (c == '"' || c == '\\') quoted += '\\';
            quoted += c;
          }
          return quoted + '"';
        } else if constexpr (std::is_same_v<T, std::vector<uint32_t>>) {
          return fmt::format("[{}]", fmt::join(*p, ", "));
        } else if constexpr (std::is_same_v<T, double>) {
          return fmt::format("{}", *p);  // shortest text that reads back as the same double
        } else if (rule.unit == Unit::kBytes) {
          const std::string text = FormatBytes(static_cast<uint64_t>(*p));
          return text.find(' ') == std::string::npos ? text : '"' + text + '"';
        } else {
          return fmt::format("{}", *p);
        }
      },
      field);
}

std::string NearestKey(std::string_view name, std::span<const std::string_view> known) {
  if (name.size() > 128) return "";
  std::string_view best;
  size_t fewest = std::clamp<size_t>(name.size() / 2, 3, 5) + 1;
  for (const std::string_view candidate : known) {
    const size_t edits = Edits(name, candidate);
    if (edits < fewest) {
      fewest = edits;
      best = candidate;
    }
  }
  return std::string(best);
}

Result<uint64_t> ParseBytes(std::string_view text) {
  const Status wrong = Invalid(
      fmt::format("\"{}\" is no size: a whole number, then B, KiB, MiB, GiB, TiB, kB, MB, GB or TB",
                  text.substr(0, 64)));
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return wrong;
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  uint64_t factor = 1;
  if (!unit.empty() && unit != "B") {
    constexpr std::string_view kPrefixes = "KMGTP";
    const bool binary = unit.size() == 3 && unit[1] == 'i';
    const size_t power = kPrefixes.find(unit[0] == 'k' ? 'K' : unit[0]);
    if (power == kPrefixes.npos || unit.back() != 'B' || unit.size() != (binary ? 3u : 2u))
      return wrong;
    for (size_t i = 0; i <= power; ++i) factor *= binary ? 1024 : 1000;
  }
  if (number > (uint64_t{1} << 62) / factor) return Invalid("more than 2^62 bytes");
  return number * factor;
}

std::string FormatBytes(uint64_t bytes) {
  size_t unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}", bytes) : fmt::format("{} {}B", bytes, kUnits[unit]);
}

}  // namespace dyna::config
