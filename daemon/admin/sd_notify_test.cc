#include "daemon/admin/sd_notify.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace dyna::admin {
namespace {

// A datagram socket that plays systemd; `path` may be abstract ("@name").
int Listen(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  const timeval limit{10, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return fd;
}

std::string Receive(int fd) {
  char text[256];
  const ssize_t n = recv(fd, text, sizeof text, 0);
  close(fd);
  return n < 0 ? "nothing came" : std::string(text, static_cast<size_t>(n));
}

TEST(SdNotify, ReachesBothKindsOfSocket) {
  const std::string name = "dynacompress-test-" + std::to_string(getpid());
  for (const std::string& path : {"@" + name, testing::TempDir() + name}) {
    const int fd = Listen(path);
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
    EXPECT_TRUE(SdNotify("READY=1\nSTATUS=serving"));
    EXPECT_EQ(Receive(fd), "READY=1\nSTATUS=serving") << path;
    unlink(path.c_str());
  }
  unsetenv("NOTIFY_SOCKET");
}

TEST(SdNotify, IsSilentWithoutListener) {
  unsetenv("NOTIFY_SOCKET");
  EXPECT_FALSE(SdNotify("READY=1"));
  for (const std::string& path : {std::string("relative"), std::string("/nonexistent/x"),
                                  "/" + std::string(200, 'x'), std::string()}) {
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
    EXPECT_FALSE(SdNotify("READY=1")) << path;
  }
  unsetenv("NOTIFY_SOCKET");
}

TEST(SdWatchdog, IsForThisProcessOnly) {
  unsetenv("WATCHDOG_PID");
  unsetenv("WATCHDOG_USEC");
  EXPECT_EQ(SdWatchdogMicros(), 0u);
  setenv("WATCHDOG_USEC", "30000000", 1);
  EXPECT_EQ(SdWatchdogMicros(), 30'000'000u);
  setenv("WATCHDOG_PID", "1", 1);
  EXPECT_EQ(SdWatchdogMicros(), 0u);
  setenv("WATCHDOG_PID", std::to_string(getpid()).c_str(), 1);
  EXPECT_EQ(SdWatchdogMicros(), 30'000'000u);
  unsetenv("WATCHDOG_PID");
  unsetenv("WATCHDOG_USEC");
}

}  // namespace
}  // namespace dyna::admin
