// Real requests over loopback sockets.
#include "daemon/admin/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>

#include "daemon/admin/testing_snapshot.h"

namespace dyna::admin {
namespace {

class HttpServerTest : public ::testing::Test {
 protected:
  void Start(HttpOptions options = {}) {
    auto server = HttpServer::Listen(
        loop_, options, {[this] { return snapshot_; }, [this] { return snapshot_.not_ready; }});
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
    thread_ = std::thread([this] { loop_.run(); });
  }
  void TearDown() override {
    if (!thread_.joinable()) return;
    asio::post(loop_, [this] { server_.reset(); });
    thread_.join();  // the loop runs out of work: nothing is left pending
  }

  int Connect() const {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(server_->port());
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    const timeval limit{20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
  }
  static std::string ReadToEnd(int fd) {
    std::string all;
    char piece[4096];
    for (ssize_t n; (n = recv(fd, piece, sizeof piece, 0)) > 0;)
      all.append(piece, static_cast<size_t>(n));
    close(fd);
    return all;
  }
  // Sends it all, closes the sending side, reads to the end.
  std::string Exchange(const std::string& bytes) const {
    const int fd = Connect();
    send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    return ReadToEnd(fd);
  }
  std::string Get(const std::string& path) const {
    return Exchange("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  }

  Snapshot snapshot_ = FullSnapshot();
  asio::io_context loop_;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

TEST_F(HttpServerTest, ServesEveryPage) {
  Start();
  EXPECT_NE(server_->port(), 0);
  const std::string metrics = Get("/metrics");
  EXPECT_EQ(metrics.rfind("HTTP/1.1 200", 0), 0u) << metrics;
  EXPECT_NE(metrics.find("text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(metrics.find("dynacompress_hits_total{tier=\"host\"} 7"), std::string::npos);
  EXPECT_NE(Get("/status").find("\"hits_host\":7"), std::string::npos);
  EXPECT_NE(Get("/status?x=1").find("application/json"), std::string::npos);
  EXPECT_NE(Get("/").find("<!doctype html>"), std::string::npos);
  EXPECT_NE(Get("/livez").find("\r\n\r\nok\n"), std::string::npos);
  EXPECT_NE(Get("/readyz").find("\r\n\r\nready\n"), std::string::npos);
}

TEST_F(HttpServerTest, ReadinessSaysWhyNot) {
  snapshot_.not_ready = {"draining", "spill: disk full"};
  Start();
  const std::string answer = Get("/readyz");
  EXPECT_EQ(answer.rfind("HTTP/1.1 503", 0), 0u);
  EXPECT_NE(answer.find("draining\nspill: disk full\n"), std::string::npos);
  EXPECT_EQ(Get("/livez").rfind("HTTP/1.1 200", 0), 0u) << "alive all the same";
}

TEST_F(HttpServerTest, KeepsAConnectionForSeveralRequests) {
  Start();
  const std::string answers = Exchange(
      "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nHEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(answers.find("\r\n\r\nok\nHTTP/1.1 200"), std::string::npos) << answers;
  EXPECT_EQ(answers.find("# HELP"), std::string::npos) << "HEAD has no body";
  EXPECT_NE(answers.find("\r\n\r\nready\n"), std::string::npos);
}

TEST_F(HttpServerTest, RefusesWhatItDoesNotServe) {
  Start();
  EXPECT_EQ(Get("/nothing").rfind("HTTP/1.1 404", 0), 0u);
  EXPECT_EQ(Get("/../etc/passwd").rfind("HTTP/1.1 404", 0), 0u);
  const std::string post = Exchange("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(post.rfind("HTTP/1.1 405", 0), 0u) << post;
  EXPECT_NE(post.find("Allow: GET, HEAD"), std::string::npos);
}

TEST_F(HttpServerTest, AnswersMalformedRequestsAndGoesOn) {
  Start();
  for (const std::string& bad :
       {std::string("nonsense\r\n\r\n"), std::string("GET  HTTP/1.1\r\n\r\n"),
        std::string("GET / HTTP/9.9\r\n\r\n"), std::string(100, '\0') + "\r\n\r\n",
        std::string("GET / HTTP/1.1\r\nbroken header\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n")})
    EXPECT_EQ(Exchange(bad).rfind("HTTP/1.1 400", 0), 0u) << bad;
  EXPECT_EQ(Exchange("GET / HT").rfind("HTTP/1.1 400 ", 0), 0u) << "cut short";
  EXPECT_EQ(Exchange(""), "");
  EXPECT_EQ(Get("/livez").rfind("HTTP/1.1 200", 0), 0u);
}

TEST_F(HttpServerTest, BoundsHeadersAndBodies) {
  Start();
  const std::string large = "GET / HTTP/1.1\r\nX: " + std::string(9000, 'x') + "\r\n\r\n";
  EXPECT_EQ(Exchange(large).rfind("HTTP/1.1 413", 0), 0u);
  EXPECT_EQ(Exchange("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").rfind("HTTP/1.1 4", 0),
            0u);
  EXPECT_EQ(Get("/livez").rfind("HTTP/1.1 200", 0), 0u);
}

TEST_F(HttpServerTest, ClosesConnectionsAboveTheLimit) {
  HttpOptions options;
  options.connections = 2;
  Start(options);
  const int first = Connect(), second = Connect();
  // Both are accepted for sure once they are answered.
  for (const int fd : {first, second}) {
    const std::string request = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    ASSERT_GT(send(fd, request.data(), request.size(), MSG_NOSIGNAL), 0);
    char piece[512];
    ASSERT_GT(recv(fd, piece, sizeof piece, 0), 0);
  }
  EXPECT_EQ(Get("/livez"), "") << "the third is closed at once";
  shutdown(first, SHUT_WR);
  EXPECT_EQ(ReadToEnd(first), "");
  EXPECT_EQ(Get("/livez").rfind("HTTP/1.1 200", 0), 0u) << "a place is free again";
  close(second);
}

TEST_F(HttpServerTest, DropsWhoDoesNotSpeak) {
  HttpOptions options;
  options.timeout_ms = 50;
  Start(options);
  EXPECT_EQ(ReadToEnd(Connect()), "") << "closed by the server, not by the test's limit";
}

TEST_F(HttpServerTest, StopsWhileConnectionsAreOpen) {
  Start();
  const int idle = Connect();
  EXPECT_EQ(Get("/livez").rfind("HTTP/1.1 200", 0), 0u);
  TearDown();
  EXPECT_EQ(ReadToEnd(idle), "");
}

TEST(HttpServer, NamesABadAddressAndABusyPort) {
  asio::io_context loop;
  HttpOptions options;
  options.address = "localhost";
  const Facts nothing{[] { return Snapshot{}; }, [] { return std::vector<std::string>{}; }};
  EXPECT_EQ(HttpServer::Listen(loop, options, nothing).status().code(), StatusCode::kInvalid);
  options.address = "::1";
  auto v6 = HttpServer::Listen(loop, options, nothing);
  options.address = "127.0.0.1";
  auto first = HttpServer::Listen(loop, options, nothing);
  ASSERT_TRUE(first.ok());
  options.port = (*first)->port();
  const Status busy = HttpServer::Listen(loop, options, nothing).status();
  EXPECT_NE(busy.message().find("bind 127.0.0.1:"), std::string::npos) << busy.ToString();
}

}  // namespace
}  // namespace dyna::admin
