// Reading TOML; the only file that knows toml++.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <fstream>
#include <set>
#include <sstream>

#include "daemon/config/config.h"
#include "daemon/config/keys.h"

namespace dyna::config {
namespace {

constexpr size_t kMaxProblems = 20;

std::string_view SectionOf(std::string_view key) { return key.substr(0, key.find('.')); }

// Any scalar or list of numbers to the field of a row.
Status AssignNode(std::string_view key, const Rule& rule, Field field, const toml::node& node) {
  if (const auto* v = node.as_boolean()) return Assign(key, rule, field, v->get());
  if (const auto* v = node.as_integer()) return Assign(key, rule, field, v->get());
  if (const auto* v = node.as_floating_point()) return Assign(key, rule, field, v->get());
  if (const auto* v = node.as_string()) return Assign(key, rule, field, v->get());
  if (const auto* list = node.as_array()) {
    std::vector<int64_t> numbers;
    for (const toml::node& item : *list) {
      const auto* number = item.as_integer();
      if (!number) return Invalid(fmt::format("{}: the list holds more than whole numbers", key));
      numbers.push_back(number->get());
    }
    return Assign(key, rule, field, numbers);
  }
  return Invalid(fmt::format("{}: wants one value, not a table or a date", key));
}

class Reader {
 public:
  explicit Reader(std::string_view source) : source_(source) {
    for (const auto& key : Keys()) names_.push_back(key.name);
    for (const auto& key : TenantKeys())
      tenant_names_.push_back(fmt::format("tenants.{}", key.name));
  }

  Result<Options> Read(const toml::table& root) {
    Options options;
    std::set<std::string_view> sections;
    for (const std::string_view name : names_) sections.insert(SectionOf(name));
    for (const auto& [key, node] : root) {
      const std::string_view name = key.str();
      if (name == "tenants") {
        ReadTenants(node, options);
      } else if (!sections.contains(name)) {
        Unknown(name, node, node.is_table() ? Sections(sections) : names_);
      } else if (const toml::table* table = node.as_table()) {
        ReadSection(name, *table, options);
      } else {
        Problem(node, fmt::format("{}: wants a table, [{}]", name, name));
      }
    }
    if (problems_.empty())
      if (const Status status = Validate(options); !status.ok())
        problems_.push_back(fmt::format("{}: {}", source_, status.message()));
    if (!problems_.empty()) return Invalid(fmt::format("{}", fmt::join(problems_, "\n")));
    return options;
  }

 private:
  static std::vector<std::string_view> Sections(const std::set<std::string_view>& sections) {
    std::vector<std::string_view> known(sections.begin(), sections.end());
    known.push_back("tenants");
    return known;
  }

  void Problem(const toml::node& node, std::string_view what) {
    if (problems_.size() == kMaxProblems) problems_.push_back("and more");
    if (problems_.size() > kMaxProblems) return;
    problems_.push_back(fmt::format("{}:{}: {}", source_, node.source().begin.line, what));
  }
  void Unknown(std::string_view name, const toml::node& node,
               std::span<const std::string_view> known) {
    const std::string near = NearestKey(name, known);
    Problem(node, fmt::format("unknown key {}{}", name.substr(0, 128),
                              near.empty() ? "" : fmt::format("; did you mean {}?", near)));
  }

  void ReadSection(std::string_view section, const toml::table& table, Options& options) {
    for (const auto& [key, node] : table) {
      const std::string name = fmt::format("{}.{}", section, key.str());
      if (!ReadKey(Keys(), name, name, node, options)) Unknown(name, node, names_);
    }
  }

  void ReadTenants(const toml::node& node, Options& options) {
    const toml::array* list = node.as_array();
    if (!list || (!list->empty() && !list->is_homogeneous(toml::node_type::table)))
      return Problem(node, "tenants: wants [[tenants]] tables");
    if (list->size() > kMaxTenants)
      return Problem(node, fmt::format("tenants: more than {}", kMaxTenants));
    for (const toml::node& item : *list) {
      TenantOptions tenant;
      for (const auto& [key, value] : *item.as_table())
        if (!ReadKey(TenantKeys(), key.str(), fmt::format("tenants.{}", key.str()), value, tenant))
          Unknown(fmt::format("tenants.{}", key.str()), value,
                  std::vector<std::string_view>(tenant_names_.begin(), tenant_names_.end()));
      options.tenants.push_back(std::move(tenant));
    }
  }

  // False: there is no such row.
  template <typename T>
  bool ReadKey(std::span<const Key<T>> keys, std::string_view name, std::string_view shown,
               const toml::node& node, T& to) {
    for (const Key<T>& key : keys) {
      if (key.name != name) continue;
      const Status status = AssignNode(shown, key.rule, key.field(to), node);
      if (!status.ok()) Problem(node, status.message());
      return true;
    }
    return false;
  }

  const std::string source_;
  std::vector<std::string_view> names_;
  std::vector<std::string> tenant_names_;
  std::vector<std::string> problems_;
};

Result<toml::table> ParseToml(std::string_view text, std::string_view source) {
  if (text.size() > kMaxConfigBytes)
    return TooLarge(fmt::format("{}: larger than {} bytes", source, kMaxConfigBytes));
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    return Invalid(
        fmt::format("{}:{}: {}", source, error.source().begin.line, error.description()));
  }
}

}  // namespace

Result<Options> Parse(std::string_view text, std::string_view source) {
  DYNA_ASSIGN_OR_RETURN(const toml::table root, ParseToml(text, source));
  return Reader(source).Read(root);
}

Result<Options> Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxConfigBytes + 1, '\0');
  if (!file) return Invalid(fmt::format("{}: cannot be opened", path));
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return Invalid(fmt::format("{}: cannot be read", path));
  text.resize(static_cast<size_t>(file.gcount()));
  return Parse(text, path);
}

Status Set(Options& options, std::string_view name, std::string_view value) {
  std::vector<std::string_view> names;
  for (const Key<Options>& key : Keys()) {
    names.push_back(key.name);
    if (key.name != name) continue;
    const Field field = key.field(options);
    if (std::holds_alternative<std::string*>(field) || key.rule.unit == Unit::kBytes)
      return Assign(name, key.rule, field, std::string(value));
    if (value.find('\n') != value.npos) return Invalid(fmt::format("{}: holds a new line", name));
    DYNA_ASSIGN_OR_RETURN(const toml::table table, ParseToml(fmt::format("v = {}", value), name));
    return AssignNode(name, key.rule, field, *table.get("v"));
  }
  const std::string near = NearestKey(name, names);
  return Invalid(fmt::format("unknown key {}{}", name.substr(0, 128),
                             near.empty() ? "" : fmt::format("; did you mean {}?", near)));
}

}  // namespace dyna::config
