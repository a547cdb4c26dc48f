#include "daemon/admin/status_view.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "daemon/admin/testing_snapshot.h"

namespace dyna::admin {
namespace {

TEST(StatusJson, SaysWhatIsHeldAndHowWell) {
  const auto json = nlohmann::json::parse(StatusJson(FullSnapshot()));
  EXPECT_TRUE(json["ready"].get<bool>());
  EXPECT_EQ(json["instance_id"], "0000000000abcdef");
  EXPECT_EQ(json["backend"]["gpu"], "NVIDIA H100 (sm_90)");
  EXPECT_EQ(json["backend"]["redone_jobs"], 5);
  EXPECT_EQ(json["fidelity"]["ratio"], 4.5);
  EXPECT_EQ(json["fidelity"]["k_tiles"]["level7"], 30);
  EXPECT_EQ(json["lookups"]["hits_host"], 7);
  EXPECT_EQ(json["requests"]["put"]["RETRY"], 5);
  EXPECT_EQ(json["contexts"][0]["bases"][0]["name"], "000000000000feed");
  EXPECT_EQ(json["contexts"][0]["bases"][0]["source"], "learned");
}

TEST(StatusJson, SurvivesAModelNameThatIsNoText) {
  Snapshot s = FullSnapshot();
  s.contexts[0].model = "\xff\xfe\"\n";
  EXPECT_NO_THROW(nlohmann::json::parse(StatusJson(s)));
}

TEST(StatusJson, EmptyDaemonDividesByNothing) {
  const auto json = nlohmann::json::parse(StatusJson(Snapshot{}));
  EXPECT_EQ(json["fidelity"]["ratio"], 0);
}

TEST(StatusPage, EscapesWhatClientsSay) {
  const std::string page = StatusPage(FullSnapshot());
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;"), std::string::npos);
  EXPECT_NE(page.find("250 B of 1000 B (25.0 %)"), std::string::npos);
}

TEST(StatusPage, NamesWhatIsMissing) {
  Snapshot s;
  s.not_ready = {"the bank is being scanned"};
  EXPECT_NE(StatusPage(s).find("Not ready: the bank is being scanned"), std::string::npos);
}

TEST(HumanBytes, ChoosesAUnit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(5.0 * (1ull << 40)), "5.0 TiB");
}

}  // namespace
}  // namespace dyna::admin
