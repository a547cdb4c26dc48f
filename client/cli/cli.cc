#include "client/cli/cli.h"

#include <fmt/format.h>

#include <cstdio>

namespace dyna::cli {
namespace {

constexpr std::string_view kUsageMark = "usage: ";

// What a person can do about it; empty where the message says all there is.
std::string Advice(const Status& s) {
  switch (s.code()) {
    case StatusCode::kCancelled:
      return "Is dynacompressd running? Its socket is given by --socket or DYNACOMPRESS_SOCKET; "
             "`systemctl status dynacompressd` or the daemon's log tell more.";
    case StatusCode::kUnauthenticated:
      return "The daemon serves its own user and root unless server.uids lists yours.";
    case StatusCode::kQuota:
      return "Raise the budget of the tenant or of the bank, or drop blocks.";
    case StatusCode::kDeadline:
      return "The daemon did not answer in time: try a longer --deadline.";
    default:
      return "";
  }
}

}  // namespace

Status BadUsage(std::string message) {
  return Invalid(std::string(kUsageMark) + std::move(message));
}

int Fail(const Globals& globals, const Status& status, const std::string& doing) {
  std::string message(status.message());
  const bool usage = message.rfind(kUsageMark, 0) == 0;
  if (usage) message.erase(0, kUsageMark.size());
  if (globals.json) {
    Print({{"error",
            {{"status", StatusName(status.code())}, {"message", message}, {"while", doing}}}});
  } else {
    fmt::print(stderr, "dynacompress: {}{}{}\n", doing.empty() ? "" : doing + ": ",
               usage ? "" : std::string(StatusName(status.code())) + ": ", message);
    if (const std::string advice = usage ? "" : Advice(status); !advice.empty())
      fmt::print(stderr, "{}\n", advice);
  }
  if (usage) return kUsage;
  if (status.code() == StatusCode::kMiss) return kMissing;
  const bool none =
      status.code() == StatusCode::kCancelled || status.code() == StatusCode::kUnauthenticated;
  return none ? kNoDaemon : kFailed;
}

Result<std::unique_ptr<Client>> ConnectClient(const Globals& globals) {
  ClientOptions o;
  o.endpoint = globals.endpoint;
  o.name = "dynacompress-cli";
  o.deadline = std::chrono::milliseconds(globals.deadline_ms);
  o.reconnect = false;
  if (globals.bulk == "region") o.bulk = Bulk::kRegion;
  if (globals.bulk == "ucx") o.bulk = Bulk::kUcx;
  if (globals.bulk == "socket") o.bulk = Bulk::kSocket;
  return Client::Connect(o);
}

Result<nlohmann::json> Ask(Client& client, wire::QueryKind kind, Fingerprint context,
                           std::vector<BlockHash> hashes, uint32_t limit) {
  DYNA_ASSIGN_OR_RETURN(const std::string text,
                        client.Query(kind, context, std::move(hashes), limit));
  auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return Internal("the daemon's answer is no JSON");
  return json;
}

void Print(const nlohmann::json& json) {
  fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string Bytes(double n) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (n >= 1024 && unit + 1 < std::size(kUnits)) {
    n /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", n) : fmt::format("{:.1f} {}", n, kUnits[unit]);
}

std::string Hex(const BlockHash& hash) {
  std::string out;
  for (uint8_t b : hash.bytes) out += fmt::format("{:02x}", b);
  return out;
}

Result<BlockHash> ParseHash(const std::string& hex) {
  BlockHash out;
  if (hex.size() != 2 * out.bytes.size() ||
      hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
    return BadUsage("'" + hex + "' is no block hash: 64 hexadecimal digits expected");
  for (size_t i = 0; i < out.bytes.size(); ++i)
    out.bytes[i] = static_cast<uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
  return out;
}

Result<Fingerprint> ParseContext(const std::string& hex) {
  if (hex.empty()) return Fingerprint{0};
  if (hex.size() > 16 || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
    return BadUsage("'" + hex +
                    "' is no context: up to 16 hexadecimal digits expected, as "
                    "`dynacompress status` prints them");
  return static_cast<Fingerprint>(std::stoull(hex, nullptr, 16));
}

}  // namespace dyna::cli
