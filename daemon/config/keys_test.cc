// The table against options.h, and the values of one key.
#include "daemon/config/keys.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace dyna::config {
namespace {

// What options.h says: field name -> the comment above it, per struct.
std::map<std::string, std::map<std::string, std::string>> ReadHeader() {
  std::ifstream file("daemon/config/options.h");
  EXPECT_TRUE(file) << "run from the root of the sources";
  std::map<std::string, std::map<std::string, std::string>> structs;
  const std::regex begin(R"(struct (\w+)Options \{)"), comment(R"(  // (.*))"),
      field(R"(  [\w:<>]+ (\w+)(?: = [^;]*)?;.*)");
  std::string line, name, help;
  std::smatch match;
  while (std::getline(file, line)) {
    if (std::regex_match(line, match, begin)) name = match[1];
    if (line == "struct Options {") break;  // the sum of the parts
    if (std::regex_match(line, match, comment)) {
      help = match[1];
    } else if (std::regex_match(line, match, field)) {
      structs[name][match[1]] = help;
      help = "";
    }
  }
  return structs;
}

TEST(Keys, AreTheFieldsOfTheHeaderWithTheirComments) {
  auto structs = ReadHeader();
  std::map<std::string, std::string> in_header;
  for (const auto& [name, fields] : structs)
    if (name != "Tenant")
      for (const auto& [field, help] : fields) in_header[field + ": " + help] = "";
  ASSERT_GT(in_header.size(), 40u);
  std::set<std::string> in_table;
  for (const auto& key : Keys())
    in_table.insert(std::string(key.name.substr(key.name.find('.') + 1)) + ": " +
                    std::string(key.help));
  size_t fields = 0;
  for (const auto& [name, list] : structs)
    if (name != "Tenant") fields += list.size();
  for (const auto& [text, unused] : in_header) EXPECT_TRUE(in_table.contains(text)) << text;
  EXPECT_EQ(fields, Keys().size());
  ASSERT_EQ(structs["Tenant"].size(), TenantKeys().size());
  for (const auto& key : TenantKeys())
    EXPECT_EQ(structs["Tenant"][std::string(key.name)], key.help) << key.name;
}

TEST(Keys, NamesAreUniqueAndDefaultsAreInRange) {
  Options defaults;
  std::set<std::string_view> names;
  for (const auto& key : Keys()) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    const Field field = key.field(defaults);
    if (auto* const* p = std::get_if<uint64_t*>(&field)) {
      EXPECT_TRUE(Assign(key.name, key.rule, field, static_cast<int64_t>(**p)).ok()) << key.name;
    } else if (auto* const* d = std::get_if<double*>(&field)) {
      EXPECT_TRUE(Assign(key.name, key.rule, field, **d).ok()) << key.name;
    } else if (auto* const* s = std::get_if<std::string*>(&field)) {
      EXPECT_TRUE(Assign(key.name, key.rule, field, std::string(**s)).ok()) << key.name;
    }
  }
}

TEST(Value, RangesAreInclusiveAndNamed) {
  double value = 7;
  const Rule rule{0, 1};
  EXPECT_TRUE(Assign("policy.hedge", rule, &value, 1.0).ok());
  EXPECT_TRUE(Assign("policy.hedge", rule, &value, int64_t{0}).ok());
  EXPECT_EQ(value, 0);
  const Status status = Assign("policy.hedge", rule, &value, 1.5);
  EXPECT_EQ(status.code(), StatusCode::kInvalid);
  EXPECT_EQ(status.message(), "policy.hedge: 1.5 is outside 0 .. 1");
  EXPECT_FALSE(Assign("policy.hedge", rule, &value, std::nan("")).ok());
  EXPECT_EQ(value, 0) << "a refused value changes nothing";
}

TEST(Value, RefusesNumbersThatWouldWrap) {
  uint16_t port = 1;
  const Rule rule{0, 65535};
  for (const int64_t v : {int64_t{-1}, int64_t{65536}, int64_t{1} << 32, INT64_MAX, INT64_MIN})
    EXPECT_FALSE(Assign("admin.port", rule, &port, v).ok()) << v;
  EXPECT_EQ(port, 1);
}

TEST(Value, SaysWhichTypeIsWanted) {
  uint32_t ms = 0;
  EXPECT_EQ(Assign("server.tick_ms", Rule{1, 10}, &ms, true).message(),
            "server.tick_ms: wants a whole number, not true");
  EXPECT_FALSE(Assign("server.tick_ms", Rule{1, 10}, &ms, 2.5).ok());
  std::string level;
  const Rule choices{0, 0, "debug|info"};
  EXPECT_TRUE(Assign("log.level", choices, &level, std::string("debug")).ok());
  EXPECT_EQ(Assign("log.level", choices, &level, std::string("inf")).message(),
            "log.level: \"inf\" is none of debug|info");
  EXPECT_FALSE(Assign("log.level", choices, &level, std::string("debug|info")).ok());
  EXPECT_FALSE(Assign("log.file", Rule{}, &level, std::string("a\nb")).ok());
}

TEST(Bytes, ReadBothKindsOfUnits) {
  EXPECT_EQ(*ParseBytes("0"), 0u);
  EXPECT_EQ(*ParseBytes("17B"), 17u);
  EXPECT_EQ(*ParseBytes("4 GiB"), 4ull << 30);
  EXPECT_EQ(*ParseBytes("20GB"), 20'000'000'000u);
  EXPECT_EQ(*ParseBytes("3 kB"), 3000u);
  for (const char* bad : {"", " ", "-1", "4 Gib", "4 GiBs", "1.5 GiB", "GiB", "4 i", "4 XB",
                          "99999999999 TiB", "18446744073709551616", "4 iB"})
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
}

TEST(Bytes, AreWrittenAsTheyAreRead) {
  for (const uint64_t bytes : {0ull, 1ull, 1000ull, 1024ull, 1536ull, 5ull << 30, 1ull << 50})
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes);
  EXPECT_EQ(FormatBytes(4ull << 30), "4 GiB");
  EXPECT_EQ(FormatBytes(1536), "1536");
}

TEST(NearestKey, SuggestsOnlyWhatIsNear) {
  const std::string_view known[] = {"arena.bytes", "spill.bytes", "budget.floor_share"};
  EXPECT_EQ(NearestKey("arena.byts", known), "arena.bytes");
  EXPECT_EQ(NearestKey("budget.floorshare", known), "budget.floor_share");
  EXPECT_EQ(NearestKey("completely.different_thing", known), "");
  EXPECT_EQ(NearestKey(std::string(100'000, 'a'), known), "") << "bounded work";
}

}  // namespace
}  // namespace dyna::config
