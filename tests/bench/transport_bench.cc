// What a frame costs beside the bare transport under it: AF_UNIX beside raw writes, UCX beside
// ucx_perftest in the same environment, small round trips beside a doorbell.
//
//   transport_bench                     # everything; prints the ratio to each reference
//
// Receivers write to 64 MiB of buffers in turn, larger than a cache of these machines.
#include <benchmark/benchmark.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/base/asio.h"
#include "client/transport/socket_channel.h"
#include "client/transport/ucx_transport.h"

namespace dyna {
namespace {

constexpr size_t kMessage = 1 << 20;
constexpr size_t kBuffers = 64;
constexpr int kWindow = 16;
constexpr int kMessages = 3000;

std::map<std::string, double> references;  // bytes/s or seconds, by name

std::vector<std::byte>& Pool(int which) {
  static std::vector<std::byte> pools[2] = {
      std::vector<std::byte>(kMessage * kBuffers, std::byte{1}),
      std::vector<std::byte>(kMessage * kBuffers, std::byte{2})};
  return pools[which];
}
std::span<std::byte> Buffer(int which, size_t i) {
  return std::span(Pool(which)).subspan((i % kBuffers) * kMessage, kMessage);
}

void Report(benchmark::State& state, const char* reference, double value, bool higher_is_better) {
  const auto it = references.find(reference);
  if (it == references.end() || it->second == 0) return;
  state.counters["ratio"] = higher_is_better ? value / it->second : it->second / value;
  state.SetLabel(std::string("ratio to ") + reference);
}

// One end of a channel on its own thread.
class Peer : public FrameSink {
 public:
  Admission OnFrame(const InFrame& frame) override {
    if (frame.header.payload_len > 0) {
      return Admission::Into(Buffer(1, received_started++).first(frame.header.payload_len),
                             [this](const Status&) { received.fetch_add(1); });
    }
    if (echo) {
      OutFrame reply;
      reply.control.assign(frame.control.begin(), frame.control.end());
      (void)channel->Send(std::move(reply));
    }
    received.fetch_add(1);
    return Admission::Handled();
  }
  void OnClosed(const Status& reason) override {
    std::fprintf(stderr, "closed: %s\n", reason.ToString().c_str());
  }
  void Start() {
    thread = std::thread([this] {
      auto work = asio::make_work_guard(loop);
      loop.run();
    });
  }
  template <typename F>
  auto On(F f) {
    std::promise<decltype(f())> promise;
    asio::post(loop, [&] { promise.set_value(f()); });
    return promise.get_future().get();
  }
  void Stop() {
    On([this] {
      channel.reset();
      end.reset();
      ucx.reset();
      return 0;
    });
    loop.stop();
    thread.join();
  }

  asio::io_context loop;
  std::thread thread;
  std::unique_ptr<UcxTransport> ucx;
  std::unique_ptr<UcxEnd> end;
  std::shared_ptr<Channel> channel;
  std::atomic<uint64_t> received{0};
  size_t received_started = 0;
  bool echo = false;
};

struct Pair {
  Peer left, right;
  bool ok = true;
  explicit Pair(bool use_ucx, int busy_poll_us = 0) {
    left.Start();
    right.Start();
    ChannelOptions options;
    if (!use_ucx) {
      int fds[2];
      ok = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0;
      left.channel =
          left.On([&] { return *MakeSocketChannel(left.loop, UniqueFd(fds[0]), options, &left); });
      right.channel = right.On(
          [&] { return *MakeSocketChannel(right.loop, UniqueFd(fds[1]), options, &right); });
      return;
    }
    UcxOptions ucx;
    ucx.busy_poll = std::chrono::microseconds(busy_poll_us);
    for (Peer* p : {&left, &right}) {
      ok = ok && p->On([&] {
        auto made = UcxTransport::Create(p->loop, ucx);
        if (made.ok()) p->ucx = std::move(*made);
        if (p->ucx) p->end = std::move(*p->ucx->Open());
        return p->ucx != nullptr;
      });
    }
    if (!ok) return;
    SessionToken token;
    token.fill(3);
    const auto connect = [&](Peer& from, Peer& to) {
      from.channel =
          from.On([&] { return *from.end->Connect(to.end->address(), token, options, &from); });
    };
    connect(left, right);
    connect(right, left);
  }
  ~Pair() {
    left.Stop();
    right.Stop();
  }
};

void BM_RawAfUnix(benchmark::State& state) {
  double best = 0;
  for (auto _ : state) {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return state.SkipWithError("socketpair");
    const int size = 1 << 20;
    ::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    const auto begin = std::chrono::steady_clock::now();
    std::thread writer([&] {
      for (int i = 0; i < kMessages; ++i) {
        auto from = Buffer(0, i);
        for (size_t at = 0; at < kMessage;) {
          const ssize_t n = ::write(fds[0], from.data() + at, kMessage - at);
          if (n <= 0) return;
          at += n;
        }
      }
    });
    for (int i = 0; i < kMessages; ++i) {
      auto to = Buffer(1, i);
      for (size_t at = 0; at < kMessage;) at += ::read(fds[1], to.data() + at, kMessage - at);
    }
    writer.join();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::max(best, kMessages * double{kMessage} / took.count());
    ::close(fds[0]);
    ::close(fds[1]);
  }
  state.SetBytesProcessed(int64_t{kMessages} * kMessage * state.iterations());
  references["raw AF_UNIX"] = best;
}

void Bandwidth(benchmark::State& state, bool use_ucx, int busy_poll_us, const char* reference) {
  Pair pair(use_ucx, busy_poll_us);
  if (!pair.ok) return state.SkipWithError("no UCX here");
  double best = 0;
  for (auto _ : state) {
    const uint64_t goal = pair.right.received + kMessages;
    std::atomic<int> sent{0};
    std::function<void()> send = [&] {
      const int i = sent.fetch_add(1);
      if (i >= kMessages) return;
      OutFrame frame;
      frame.control.resize(100);
      frame.payload = {Buffer(0, i)};
      if (!pair.left.channel->Send(std::move(frame), [&](const Status&) { send(); }).ok())
        std::abort();
    };
    const auto begin = std::chrono::steady_clock::now();
    pair.left.On([&] {
      for (int i = 0; i < kWindow; ++i) send();
      return 0;
    });
    while (pair.right.received < goal) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::max(best, kMessages * double{kMessage} / took.count());
    pair.left.On([] { return 0; });  // its last completions are done with `sent`
    while (sent < kMessages + kWindow) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  state.SetBytesProcessed(int64_t{kMessages} * kMessage * state.iterations());
  Report(state, reference, best, true);
}
void BM_ChannelAfUnix(benchmark::State& state) { Bandwidth(state, false, 0, "raw AF_UNIX"); }
void BM_ChannelUcxSleeping(benchmark::State& state) {
  Bandwidth(state, true, 0, "ucx_perftest sleeping");
}
void BM_ChannelUcxSpinning(benchmark::State& state) { Bandwidth(state, true, 200, "ucx_perftest"); }

// MB/s of ucx_perftest over shared memory with peer error handling, as our channel has it.
void Perftest(benchmark::State& state, const char* mode, const char* name, int port) {
  for (auto _ : state) {
    const std::string common =
        "env UCX_TLS=self,posix UCX_NET_DEVICES=lo UCX_POSIX_ERROR_HANDLING=y "
        "UCX_WARN_UNUSED_ENV_VARS=n ucx_perftest -e -p " +
        std::to_string(port) + " " + mode;
    std::thread server([&] {
      if (std::system((common + " >/dev/null 2>&1").c_str()) != 0) return;
    });
    ::sleep(1);
    FILE* out =
        ::popen((common + " 127.0.0.1 -t ucp_am_bw -s 1048576 -n 3000 -O 16 -f 2>&1").c_str(), "r");
    char line[512];
    double mbps = 0;
    while (std::fgets(line, sizeof line, out)) {
      double lat[3], bw[2];
      unsigned long n;
      if (std::sscanf(line, "%lu %lf %lf %lf %lf %lf", &n, &lat[0], &lat[1], &lat[2], &bw[0],
                      &bw[1]) == 6)
        mbps = bw[1];
    }
    ::pclose(out);
    server.join();
    if (mbps == 0) return state.SkipWithError("ucx_perftest did not run");
    references[name] = mbps * (1 << 20);
    state.counters["MB/s"] = mbps;
  }
}
void BM_UcxPerftest(benchmark::State& state) { Perftest(state, "", "ucx_perftest", 18515); }
void BM_UcxPerftestSleeping(benchmark::State& state) {
  Perftest(state, "-E sleep", "ucx_perftest sleeping", 18516);
}

// One byte each way over a socket, both ends asleep in between: what any call costs at least.
void BM_Doorbell(benchmark::State& state) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return state.SkipWithError("socketpair");
  std::thread other([&] {
    for (char c; ::read(fds[1], &c, 1) == 1;)
      if (::write(fds[1], &c, 1) != 1) return;
  });
  const auto begin = std::chrono::steady_clock::now();
  for (auto _ : state) {
    char c = 'x';
    if (::write(fds[0], &c, 1) != 1 || ::read(fds[0], &c, 1) != 1) break;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  references["doorbell"] = took.count() / static_cast<double>(state.iterations());
  ::shutdown(fds[0], SHUT_RDWR);
  other.join();
  ::close(fds[0]);
  ::close(fds[1]);
}

void RoundTrip(benchmark::State& state, bool use_ucx) {
  Pair pair(use_ucx);
  if (!pair.ok) return state.SkipWithError("no UCX here");
  pair.right.echo = true;
  // The left loop runs on this thread, as a blocking client's does.
  pair.left.loop.stop();
  pair.left.thread.join();
  pair.left.loop.restart();
  const auto begin = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const uint64_t goal = pair.left.received + 1;
    OutFrame frame;
    frame.control.resize(64);
    (void)pair.left.channel->Send(std::move(frame));
    while (pair.left.received < goal) pair.left.loop.run_one();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  Report(state, "doorbell", took.count() / static_cast<double>(state.iterations()), false);
  pair.left.Start();
}
void BM_RoundTripAfUnix(benchmark::State& state) { RoundTrip(state, false); }
void BM_RoundTripUcx(benchmark::State& state) { RoundTrip(state, true); }

BENCHMARK(BM_RawAfUnix)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ChannelAfUnix)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_UcxPerftest)->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_UcxPerftestSleeping)->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ChannelUcxSpinning)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_ChannelUcxSleeping)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(BM_Doorbell)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_RoundTripAfUnix)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_RoundTripUcx)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace dyna

BENCHMARK_MAIN();
