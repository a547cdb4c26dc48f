#include "daemon/admin/http_server.h"

#include <fmt/format.h>

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <list>
#include <optional>

#include "daemon/admin/status_view.h"

namespace dyna::admin {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Request = http::request<http::empty_body>;
using Response = http::response<http::string_body>;

constexpr uint32_t kMaxHeaderBytes = 8 << 10;
constexpr std::string_view kPaths = "/ /metrics /status /readyz /livez\n";

struct Answer {
  http::status status;
  std::string_view type;
  std::string body;
};

Answer Route(std::string_view path, const Facts& facts) {
  path = path.substr(0, path.find('?'));
  constexpr std::string_view kText = "text/plain; charset=utf-8";
  // The loop runs, or nobody would answer.
  if (path == "/livez") return {http::status::ok, kText, "ok\n"};
  if (path == "/readyz") {
    const auto why = facts.not_ready();
    if (why.empty()) return {http::status::ok, kText, "ready\n"};
    return {http::status::service_unavailable, kText, fmt::format("{}\n", fmt::join(why, "\n"))};
  }
  if (path == "/metrics")
    return {http::status::ok, "text/plain; version=0.0.4; charset=utf-8",
            MetricsText(facts.snapshot())};
  if (path == "/status")
    return {http::status::ok, "application/json", StatusJson(facts.snapshot())};
  if (path == "/")
    return {http::status::ok, "text/html; charset=utf-8", StatusPage(facts.snapshot())};
  return {http::status::not_found, kText, fmt::format("no such page; there are {}", kPaths)};
}

}  // namespace

class HttpServer::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(asio::io_context& loop, const HttpOptions& options, Facts facts)
      : loop_(loop), options_(options), facts_(std::move(facts)), acceptor_(loop) {}

  Status Open() {
    beast::error_code error;
    const asio::ip::address address = asio::ip::make_address(options_.address, error);
    if (error) return Invalid(fmt::format("admin.address: {}", error.message()));
    const tcp::endpoint endpoint(address, options_.port);
    const auto failed = [&](const char* what) {
      return Internal(fmt::format("admin page: {} {}:{}: {}", what, options_.address, options_.port,
                                  error.message()));
    };
    if (acceptor_.open(endpoint.protocol(), error); error) return failed("socket for");
    if (acceptor_.set_option(tcp::acceptor::reuse_address(true), error); error)
      return failed("option of");
    if (acceptor_.bind(endpoint, error); error) return failed("bind");
    if (acceptor_.listen(static_cast<int>(options_.connections), error); error)
      return failed("listen on");
    port_ = acceptor_.local_endpoint(error).port();
    Accept();
    return {};
  }
  void Close() {
    closed_ = true;
    beast::error_code ignored;
    acceptor_.close(ignored);
    timer_.cancel();
    for (const auto& session : sessions_) session->stream.socket().close(ignored);
  }
  uint16_t port() const { return port_; }

 private:
  struct Session {
    explicit Session(tcp::socket socket) : stream(std::move(socket)) {}
    beast::tcp_stream stream;
    beast::flat_buffer buffer{kMaxHeaderBytes};
    std::optional<http::request_parser<http::empty_body>> parser;
    Response response;
    std::list<std::shared_ptr<Session>>::iterator at;
  };
  using SessionPtr = std::shared_ptr<Session>;

  void Accept() {
    acceptor_.async_accept(
        [self = shared_from_this()](beast::error_code error, tcp::socket socket) {
          if (self->closed_) return;
          if (!error && self->sessions_.size() < self->options_.connections) {
            auto session = std::make_shared<Session>(std::move(socket));
            session->at = self->sessions_.insert(self->sessions_.end(), session);
            self->Read(session);
          }
          if (error && error != asio::error::connection_aborted) return self->AcceptLater();
          self->Accept();
        });
  }
  // Out of descriptors: the queue of the kernel keeps the callers meanwhile.
  void AcceptLater() {
    timer_.expires_after(std::chrono::milliseconds(200));
    timer_.async_wait([self = shared_from_this()](beast::error_code error) {
      if (!error && !self->closed_) self->Accept();
    });
  }

  void Read(const SessionPtr& session) {
    session->parser.emplace();
    session->parser->header_limit(kMaxHeaderBytes);
    session->parser->body_limit(0);
    session->stream.expires_after(std::chrono::milliseconds(options_.timeout_ms));
    http::async_read(session->stream, session->buffer, *session->parser,
                     [self = shared_from_this(), session](beast::error_code error, size_t) {
                       self->OnRequest(session, error);
                     });
  }

  void OnRequest(const SessionPtr& session, beast::error_code error) {
    if (closed_ || error == http::error::end_of_stream || error == beast::error::timeout)
      return Drop(session);
    if (!error) return Reply(session, session->parser->get());
    // What the parser refuses gets an answer that says why; a broken connection gets none.
    if (error.category() != make_error_code(http::error::bad_method).category())
      return Drop(session);
    const bool large = error == http::error::header_limit || error == http::error::body_limit ||
                       error == http::error::buffer_overflow;
    Send(session, Request{http::verb::get, "/", 11}, false,
         {large ? http::status::payload_too_large : http::status::bad_request, "text/plain",
          error.message() + "\n"});
  }

  void Reply(const SessionPtr& session, const Request& request) {
    const bool known = request.method() == http::verb::get || request.method() == http::verb::head;
    const auto target = request.target();
    Send(session, request, request.keep_alive(),
         known ? Route({target.data(), target.size()}, facts_)
               : Answer{http::status::method_not_allowed, "text/plain", "GET and HEAD only\n"});
  }

  void Send(const SessionPtr& session, const Request& request, bool keep_alive, Answer answer) {
    Response& response = session->response = Response(answer.status, request.version());
    response.set(http::field::content_type,
                 beast::string_view(answer.type.data(), answer.type.size()));
    response.set(http::field::cache_control, "no-store");
    response.set("X-Content-Type-Options", "nosniff");
    response.set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'");
    if (answer.status == http::status::method_not_allowed)
      response.set(http::field::allow, "GET, HEAD");
    response.keep_alive(keep_alive);
    response.content_length(answer.body.size());
    if (request.method() != http::verb::head) response.body() = std::move(answer.body);
    session->stream.expires_after(std::chrono::milliseconds(options_.timeout_ms));
    http::async_write(
        session->stream, response,
        [self = shared_from_this(), session, keep_alive](beast::error_code error, size_t) {
          if (error || !keep_alive || self->closed_) return self->Drop(session);
          self->Read(session);
        });
  }

  void Drop(const SessionPtr& session) {
    beast::error_code ignored;
    session->stream.socket().shutdown(tcp::socket::shutdown_both, ignored);
    session->stream.close();
    if (session->at != sessions_.end()) sessions_.erase(session->at);
    session->at = sessions_.end();
  }

  asio::io_context& loop_;
  const HttpOptions options_;
  const Facts facts_;
  tcp::acceptor acceptor_;
  asio::steady_timer timer_{loop_};
  std::list<SessionPtr> sessions_;
  uint16_t port_ = 0;
  bool closed_ = false;
};

Result<std::unique_ptr<HttpServer>> HttpServer::Listen(asio::io_context& loop,
                                                       const HttpOptions& options, Facts facts) {
  auto impl = std::make_shared<Impl>(loop, options, std::move(facts));
  DYNA_RETURN_IF_ERROR(impl->Open());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { impl_->Close(); }
uint16_t HttpServer::port() const { return impl_->port(); }

}  // namespace dyna::admin
