// The door: whole files.
#include "daemon/config/config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace dyna::config {
namespace {

std::string Message(std::string_view toml) {
  const Result<Options> result = Parse(toml, "x.toml");
  return result.ok() ? "" : std::string(result.status().message());
}

TEST(Parse, EmptyIsTheDefaults) {
  const Result<Options> result = Parse("", "x.toml");
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(Print(*result), Print(Options{}));
}

TEST(Parse, TheFileThatIsShippedIsTheDefaults) {
  std::ifstream file("deploy/dynacompressd.toml");
  ASSERT_TRUE(file) << "run from the root of the sources";
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_EQ(text.str(), Print(Options{})) << "write it with: dynacompressd --print-config";
}

TEST(Parse, ReadsEveryKindOfValue) {
  const Result<Options> result = Parse(R"(
    [server]
    uids = [1000, 1001]
    [arena]
    bytes = "3 GiB"
    prefault = false
    [policy]
    hedge = 1
    gamma = 0.25
    name = "uniform"
    [admin]
    port = 1234
    address = "::1"
    [[tenants]]
    name = "a"
    uids = [1000]
    quota_bytes = "1 GB"
    [[tenants]]
    name = "b"
    uids = [1001]
  )",
                                       "x.toml");
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(result->server.uids, (std::vector<uint32_t>{1000, 1001}));
  EXPECT_EQ(result->arena.bytes, 3ull << 30);
  EXPECT_FALSE(result->arena.prefault);
  EXPECT_EQ(result->policy.hedge, 1);
  EXPECT_EQ(result->policy.gamma, 0.25);
  EXPECT_EQ(result->admin.port, 1234);
  ASSERT_EQ(result->tenants.size(), 2u);
  EXPECT_EQ(result->tenants[0].quota_bytes, 1'000'000'000u);
}

TEST(Parse, WhatIsPrintedIsRead) {
  Options options;
  options.arena.bytes = 1000;
  options.policy.gamma = 1.0 / 3;
  options.log.file = "/tmp/a \"quoted\\\" file";
  options.tenants = {{"a", {1, 2}, 5ull << 30}, {"b", {3}, 0}};
  const Result<Options> back = Parse(Print(options), "x.toml");
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(Print(*back), Print(options));
  EXPECT_EQ(back->policy.gamma, options.policy.gamma);
  EXPECT_EQ(back->log.file, options.log.file);
  EXPECT_EQ(back->tenants, options.tenants);
}

TEST(Parse, UnknownKeysAreNamedWithTheNearestOne) {
  EXPECT_EQ(Message("[arena]\nbyts = 1"),
            "x.toml:2: unknown key arena.byts; did you mean arena.bytes?");
  EXPECT_EQ(Message("[areena]\nbytes = 1"), "x.toml:1: unknown key areena; did you mean arena?");
  EXPECT_EQ(Message("bytes = 1").substr(0, 27), "x.toml:1: unknown key bytes");
  EXPECT_EQ(Message("[[tenants]]\nname='a'\nuids=[1]\nuid=3"),
            "x.toml:4: unknown key tenants.uid; did you mean tenants.uids?");
}

TEST(Parse, EveryProblemIsReported) {
  EXPECT_EQ(Message("[policy]\nhedge = 2\ngamma = \"x\"\n[arena]\nbytes = \"4 Gb\"\nfoo = 1"),
            "x.toml:5: arena.bytes: \"4 Gb\" is no size: a whole number, then B, KiB, MiB, GiB, "
            "TiB, kB, MB, GB or TB\n"
            "x.toml:6: unknown key arena.foo\n"
            "x.toml:3: policy.gamma: wants a number, not a string\n"
            "x.toml:2: policy.hedge: 2 is outside 0 .. 1");
}

TEST(Parse, RefusesWhatIsNotAConfiguration) {
  for (const char* bad :
       {"[arena", "a = ", "arena = 3", "[arena.bytes]\nx = 1", "[arena]\nbytes = 1979-05-27",
        "tenants = 3", "tenants = [1, 2]", "[server]\nuids = [1, \"root\"]",
        "[server]\nuids = [-1]", "[server]\nuids = 5", "[admin]\nport = 65536",
        "[arena]\nbytes = -1", "[arena]\nbytes = 9223372036854775807", "[policy]\nhedge = nan",
        "[policy]\nhedge = inf", "[log]\nlevel = \"loud\"", "[log]\nlevel = 3",
        "[arena]\nbytes = 1\nbytes = 2"})
    EXPECT_NE(Message(bad), "") << bad;
  EXPECT_NE(Message(std::string(kMaxConfigBytes + 1, ' ')), "");
}

TEST(Parse, BoundsItsReport) {
  std::string text = "[arena]\n";
  for (int i = 0; i < 1000; ++i) text += "unknown" + std::to_string(i) + " = 1\n";
  const std::string message = Message(text);
  EXPECT_LT(message.size(), 4000u);
  EXPECT_NE(message.find("and more"), message.npos);
}

TEST(Validate, FindsContradictions) {
  EXPECT_NE(Message("[admin]\naddress = \"localhost\"").find("admin.address"), std::string::npos);
  EXPECT_NE(Message("[leases]\nttl_ms = 5000\nmax_ttl_ms = 1000").find("leases.ttl_ms"),
            std::string::npos);
  EXPECT_NE(Message("[spill]\ndir = \"relative\"").find("spill.dir"), std::string::npos);
  EXPECT_NE(Message("[spill]\ndir = \"/x\"\n[bank]\ndir = \"/x\"").find("bank.dir"),
            std::string::npos);
  EXPECT_NE(Message("[server]\nsocket = \"/" + std::string(107, 'x') + "\"").find("server.socket"),
            std::string::npos);
  const std::string a = "[[tenants]]\nname = \"a\"\nuids = [1]\n";
  EXPECT_NE(Message(a + a).find("twice"), std::string::npos);
  EXPECT_NE(Message(a + "[[tenants]]\nname = \"b\"\nuids = [1]").find("two tenants"),
            std::string::npos);
  EXPECT_NE(Message("[[tenants]]\nname = \"a b\"\nuids = [1]").find("tenants.name"),
            std::string::npos);
  EXPECT_NE(Message("[[tenants]]\nname = \"a\"").find("has none"), std::string::npos);
}

TEST(Load, NamesTheFile) {
  const Result<Options> result = Load("/nonexistent/d.toml");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().message(), "/nonexistent/d.toml: cannot be opened");
  EXPECT_FALSE(Load("/").ok()) << "a folder";
}

TEST(Set, TakesTextFromTheCommandLine) {
  Options options;
  EXPECT_TRUE(Set(options, "arena.bytes", "2GiB").ok());
  EXPECT_TRUE(Set(options, "arena.prefault", "false").ok());
  EXPECT_TRUE(Set(options, "server.uids", "[5, 6]").ok());
  EXPECT_TRUE(Set(options, "log.level", "debug").ok());
  EXPECT_EQ(options.arena.bytes, 2ull << 30);
  EXPECT_FALSE(options.arena.prefault);
  EXPECT_EQ(options.server.uids, (std::vector<uint32_t>{5, 6}));
  EXPECT_EQ(Set(options, "arena.size", "1").message(),
            "unknown key arena.size; did you mean arena.bytes?");
  EXPECT_FALSE(Set(options, "admin.port", "80\nx = 1").ok());
  EXPECT_FALSE(Set(options, "admin.port", "").ok());
}

TEST(Reload, TakesWhatMayChangeAndNamesTheRest) {
  Options running, loaded;
  loaded.budget.bytes = 1 << 20;
  loaded.arena.bytes = 1 << 20;
  loaded.log.level = "debug";
  loaded.tenants = {{"a", {1}, 0}};
  std::vector<Change> changes;
  const Options now = Reload(running, loaded, changes);
  EXPECT_EQ(now.budget.bytes, 1u << 20);
  EXPECT_EQ(now.log.level, "debug");
  EXPECT_EQ(now.arena.bytes, 0u);
  EXPECT_EQ(now.tenants.size(), 1u);
  ASSERT_EQ(changes.size(), 4u);
  EXPECT_EQ(changes[0].key, "arena.bytes");
  EXPECT_FALSE(changes[0].applied);
  EXPECT_EQ(changes[1].key, "budget.bytes");
  EXPECT_EQ(changes[1].to, "\"1 MiB\"");
  EXPECT_TRUE(changes[1].applied);
  changes.clear();
  Reload(now, now, changes);
  EXPECT_TRUE(changes.empty());
}

}  // namespace
}  // namespace dyna::config
