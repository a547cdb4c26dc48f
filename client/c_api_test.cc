#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "client/c_types.h"
#include "client/test_daemon.h"

extern "C" int run_c_api_test(const char* socket);

namespace dyna {
namespace {

TEST(CApi, WorksFromC) {
  const std::string path = "/tmp/dyna_c_api_test_" + std::to_string(getpid()) + ".sock";
  TestDaemon daemon(path);
  EXPECT_EQ(run_c_api_test(path.c_str()), 0) << "the line of c_api_test.c whose check failed";
}

TEST(CApi, AQueueIsReadableWhileSomethingIsToBeDrained) {
  constexpr size_t kResults = 20'000;
  const auto queue = *c::CompletionQueue::Create(kResults);
  std::thread pusher([&] {
    for (size_t i = 0; i < kResults; ++i) {
      EXPECT_TRUE(queue->Reserve());
      queue->Push(i, c::ToResult(Status::Ok()));
    }
  });
  dyna_completion got[3];
  for (size_t drained = 0; drained < kResults;) {
    const size_t n = queue->Drain(got, 3);
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(got[i].tag, drained + i);
      dyna_result_free(got[i].result);
    }
    drained += n;
  }
  pusher.join();
  pollfd p{queue->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&p, 1, 0), 0);
}

}  // namespace
}  // namespace dyna
