#include "daemon/admin/metrics.h"

#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <sstream>

#include "daemon/admin/testing_snapshot.h"

namespace dyna::admin {
namespace {

TEST(Descriptors, FollowTheNamingRules) {
  const std::regex good("[a-z][a-z0-9]*(_[a-z0-9]+)*");
  std::set<std::string_view> names;
  for (const Descriptor& row : Descriptors()) {
    const std::string name(row.name);
    EXPECT_TRUE(std::regex_match(name, good)) << name;
    EXPECT_TRUE(names.insert(row.name).second) << name << " is there twice";
    EXPECT_EQ(name.ends_with("_total"), row.type == Type::kCounter) << name;
    EXPECT_FALSE(row.help.empty() || row.help.ends_with('.')) << name;
    for (const std::string_view unit : {"_ms", "_us", "_kb", "_mb", "_percent"})
      EXPECT_FALSE(name.ends_with(unit)) << name << ": base units";
    for (const std::string_view label : row.labels)
      EXPECT_TRUE(std::regex_match(std::string(label), good)) << name;
  }
  EXPECT_GT(names.size(), 70u);
}

TEST(Descriptors, EmitTheLabelsThatTheyDeclare) {
  const Snapshot snapshot = FullSnapshot();
  for (const Descriptor& row : Descriptors()) {
    Samples samples;
    row.emit(snapshot, samples);
    EXPECT_FALSE(samples.list().empty()) << row.name;
    EXPECT_LE(samples.list().size(), 200u) << row.name << ": low cardinality";
    std::set<std::vector<std::string>> seen;
    for (const Samples::Sample& sample : samples.list()) {
      EXPECT_EQ(sample.labels.size(), row.labels.size()) << row.name;
      EXPECT_EQ(sample.histogram != nullptr, row.type == Type::kHistogram) << row.name;
      EXPECT_TRUE(seen.insert(sample.labels).second) << row.name << ": a label set twice";
      for (const std::string& label : sample.labels) EXPECT_NE(label, "unknown") << row.name;
    }
  }
}

// Every family that the text holds is a row, and every row is in the text.
TEST(MetricsText, HasTheFamiliesOfTheTable) {
  std::istringstream text(MetricsText(FullSnapshot()));
  std::set<std::string> described, sampled;
  const std::regex type(R"(# TYPE dynacompress_(\w+) (counter|gauge|histogram))"),
      sample(R"(dynacompress_(\w+)(\{[^}]*\})? [-+0-9.eNainf]+)");
  std::smatch match;
  for (std::string line; std::getline(text, line);) {
    if (std::regex_match(line, match, type)) {
      described.insert(match[1]);
    } else if (line.rfind("# HELP", 0) != 0 && !line.empty()) {
      ASSERT_TRUE(std::regex_match(line, match, sample)) << line;
      sampled.insert(std::regex_replace(match[1].str(), std::regex("_(bucket|sum|count)$"), ""));
    }
  }
  std::set<std::string> rows;
  for (const Descriptor& row : Descriptors()) rows.insert(std::string(row.name));
  EXPECT_EQ(described, rows);
  EXPECT_EQ(sampled, rows);
}

TEST(MetricsText, CarriesTheValues) {
  const std::string text = MetricsText(FullSnapshot());
  for (const char* line :
       {"dynacompress_hits_total{tier=\"host\"} 7\n", "dynacompress_hits_total{tier=\"spill\"} 2\n",
        "dynacompress_tiles{part=\"k\",kind=\"level7\"} 30\n",
        "dynacompress_tiles{part=\"v\",kind=\"2bit\"} 40\n",
        "dynacompress_tiles{part=\"v\",kind=\"mean\"} 0\n",
        "dynacompress_requests_total{op=\"put\",result=\"RETRY\"} 5\n",
        "dynacompress_request_duration_seconds_bucket{op=\"put\",le=\"1e-05\"} 0\n",
        "dynacompress_request_duration_seconds_bucket{op=\"put\",le=\"2e-05\"} 1\n",
        "dynacompress_request_duration_seconds_bucket{op=\"put\",le=\"+Inf\"} 2\n",
        "dynacompress_request_duration_seconds_count{op=\"put\"} 2\n",
        "dynacompress_tier_capacity_bytes{tier=\"spill\"} 3000\n",
        "dynacompress_tick_seconds_total 2\n",
        "dynacompress_tenant_bytes{tenant=\"team-a\"} 100\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

TEST(Histogram, PutsAValueOnABoundBelowIt) {
  Histogram h;
  h.Observe(0);
  h.Observe(Histogram::BoundSeconds(3));
  h.Observe(1e9);
  EXPECT_EQ(h.counts[0], 1u);
  EXPECT_EQ(h.counts[3], 1u);
  EXPECT_EQ(h.counts[Histogram::kBounds], 1u);
}

}  // namespace
}  // namespace dyna::admin
