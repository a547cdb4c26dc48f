#include "client/base/log.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace dyna {
namespace {

std::string Read(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

TEST(LogTest, WritesWhatPassesTheLevel) {
  const std::string path = testing::TempDir() + "/dyna_log_test.log";
  ::remove(path.c_str());
  ASSERT_TRUE(StartLog({LogLevel::kInfo, path, 64}).ok());
  LogInfo("block {} of {}", 3, "context");
  LogDebug("not this");
  SetLogLevel(LogLevel::kDebug);
  LogDebug("but this");
  StopLog();
  SetLogLevel(LogLevel::kInfo);
  const std::string text = Read(path);
  EXPECT_NE(text.find("info block 3 of context"), std::string::npos) << text;
  EXPECT_EQ(text.find("not this"), std::string::npos);
  EXPECT_NE(text.find("but this"), std::string::npos);
}

// The sink is a pipe that nobody reads: the logger must neither wait nor grow.
TEST(LogTest, DropsAndCountsWhenTheSinkIsStuck) {
  const std::string path = testing::TempDir() + "/dyna_log_test.fifo";
  ::remove(path.c_str());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::string drained;
  std::thread* reader = nullptr;
  std::ifstream pipe;
  std::thread opener([&] { pipe.open(path); });
  ASSERT_TRUE(StartLog({LogLevel::kInfo, path, 16}).ok());
  opener.join();
  const uint64_t before = DroppedLogLines();
  const std::string line(1000, 'x');
  for (int i = 0; i < 500; ++i) LogWarn("{}", line);  // 500 KB into a 64 KiB pipe
  EXPECT_GT(DroppedLogLines(), before + 300);
  std::thread drain([&] {
    std::stringstream out;
    out << pipe.rdbuf();
    drained = out.str();
  });
  reader = &drain;
  StopLog();
  reader->join();
  EXPECT_FALSE(drained.empty());
}

TEST(LogTest, JsonIsOneObjectALine) {
  const std::string path = testing::TempDir() + "/dyna_log_test.json";
  ::remove(path.c_str());
  ASSERT_TRUE(StartLog({LogLevel::kInfo, path, 64, LogFormat::kJson}).ok());
  LogWarn("model \"{}\" in {}", "a\nb\t\x01\x7f", "C:\\x {%v}");
  LogInfo("{}", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");                // UTF-8 stays
  LogInfo("{}", "\xff.\xc0\x80.\xed\xa0\x80.\xf4\x90\x80\x80.\xe2\x82");  // what is none
  StopLog();
  std::istringstream lines(Read(path));
  std::string line;
  const auto message = [&] {
    std::getline(lines, line);
    const std::string key = ",\"message\":";
    const auto at = line.find(key);
    EXPECT_EQ(line.rfind("{\"time\":\"20", 0), 0u) << line;
    return at == std::string::npos ? line : line.substr(at + key.size());
  };
  EXPECT_EQ(message(), R"("model \"a\nb\u0009\u0001\u007f\" in C:\\x {%v}"})");
  EXPECT_NE(line.find("\"level\":\"warning\""), std::string::npos) << line;
  EXPECT_EQ(message(), "\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"}");
  const std::string bad = "\\ufffd";
  EXPECT_EQ(message(), "\"" + bad + "." + bad + bad + "." + bad + bad + bad + "." + bad + bad +
                           bad + bad + "." + bad + bad + "\"}");
  EXPECT_FALSE(std::getline(lines, line)) << line;
}

TEST(LogTest, RefusesWhatItCannotOpen) {
  EXPECT_EQ(StartLog({LogLevel::kInfo, "/dev/null/x.log", 16}).code(), StatusCode::kInternal);
  EXPECT_EQ(ParseLogLevel("loud").status().code(), StatusCode::kInvalid);
  EXPECT_EQ(*ParseLogLevel("warn"), LogLevel::kWarn);
  EXPECT_EQ(ParseLogFormat("xml").status().code(), StatusCode::kInvalid);
}

}  // namespace
}  // namespace dyna
