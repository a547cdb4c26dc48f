#include "client/transport/ucx/ucx_handles.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/crc32c.h"

namespace dyna::ucx {
namespace {

constexpr uint32_t kMagic = 0x58555944;  // "DYUX"
constexpr size_t kMaxAddress = 4096;

struct Envelope {
  uint32_t magic = kMagic;
  uint16_t major = 0, minor = 0;
  uint32_t length = 0;
  uint32_t crc32c = 0;
};
static_assert(sizeof(Envelope) == 16);

Envelope OurEnvelope() {
  unsigned major = 0, minor = 0, release = 0;
  ucp_get_version(&major, &minor, &release);
  Envelope envelope;
  envelope.major = static_cast<uint16_t>(major);
  envelope.minor = static_cast<uint16_t>(minor);
  return envelope;
}

// Whether UCX would use shared memory, by the comma-separated names in `tls`.
bool MayShareMemory(std::string_view tls) {
  constexpr std::string_view kNames[] = {"posix", "shm", "sm", "mm", "sysv", "all"};
  while (!tls.empty()) {
    const auto word = tls.substr(0, tls.find(','));
    if (std::find(std::begin(kNames), std::end(kNames), word) != std::end(kNames)) return true;
    tls.remove_prefix(std::min(tls.size(), word.size() + 1));
  }
  return false;
}

// UCX's own log, of this process. The only door to its level once it runs.
void SetLogLevel(const char* level) {
  ucp_config_t* config = nullptr;
  if (ucp_config_read(nullptr, nullptr, &config) != UCS_OK) return;
  (void)ucp_config_modify(config, "LOG_LEVEL", level);
  ucp_config_release(config);
}

}  // namespace

Status ToStatus(std::string_view what, ucs_status_t status) {
  const std::string message = std::string(what) + ": " + ucs_status_string(status);
  switch (status) {
    case UCS_OK:
      return Status::Ok();
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
      return {StatusCode::kRetry, message, 10};
    case UCS_ERR_CANCELED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_NOT_CONNECTED:
      return {StatusCode::kCancelled, message};
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NO_DEVICE:
      return Unsupported(message);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return Invalid(message);
    default:
      return Internal(message);
  }
}

Status Context::Open(const UcxOptions& options) {
  ucp_config_t* config = nullptr;
  if (const ucs_status_t s = ucp_config_read(nullptr, nullptr, &config); s != UCS_OK)
    return ToStatus("ucp_config_read", s);
  // While a peer is stopped and its queue full, 1.13.1 retries a keepalive that is due in every
  // progress call and reports it as work: the loop would spin. The socket and the pidfd tell of
  // death sooner anyway.
  const std::string keepalive =
      options.keepalive.count() == 0 ? "inf" : std::to_string(options.keepalive.count()) + "ms";
  std::vector<std::pair<const char*, const char*>> settings = {
      {"TLS", options.tls.c_str()},
      {"NET_DEVICES", options.net_devices.c_str()},
      {"KEEPALIVE_INTERVAL", keepalive.c_str()},
  };
  // Without it UCX silently drops shared memory from endpoints that handle the death of their
  // peer. A context without such a transport would warn of it.
  if (MayShareMemory(options.tls)) settings.emplace_back("MM_ERROR_HANDLING", "y");
  for (const auto& [name, value] : settings) {
    if (const ucs_status_t s = ucp_config_modify(config, name, value); s != UCS_OK) {
      ucp_config_release(config);
      return ToStatus(std::string("ucx.") + name + " = " + value, s);
    }
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "dynacompress";
  const ucs_status_t status = ucp_init(&params, config, &handle_);
  ucp_config_release(config);
  if (status != UCS_OK) return ToStatus("ucp_init with ucx.tls = " + options.tls, status);

  ucp_context_attr_t attr{};
  attr.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  if (const ucs_status_t s = ucp_context_query(handle_, &attr); s != UCS_OK)
    return ToStatus("ucp_context_query", s);
  cuda_ = (attr.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
  return Status::Ok();
}

Status Worker::Open(const Context& context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  if (const ucs_status_t s = ucp_worker_create(context.get(), &params, &handle_); s != UCS_OK)
    return ToStatus("ucp_worker_create", s);
  if (const ucs_status_t s = ucp_worker_get_efd(handle_, &event_fd_); s != UCS_OK)
    return ToStatus("ucp_worker_get_efd", s);
  ucp_worker_attr_t attr{};
  attr.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS | UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  if (const ucs_status_t s = ucp_worker_query(handle_, &attr); s != UCS_OK)
    return ToStatus("ucp_worker_query", s);
  max_am_header_ = attr.max_am_header;
  address_ = WrapAddress({reinterpret_cast<const std::byte*>(attr.address), attr.address_length});
  ucp_worker_release_address(handle_, attr.address);
  if (max_am_header_ < 1024)
    return Unsupported("UCX: AM headers of " + std::to_string(max_am_header_) +
                       " bytes, 1,024 are needed");
  return Status::Ok();
}

void Worker::Destroy(bool forgotten) {
  if (handle_ == nullptr) return;
  const char* level = std::getenv("UCX_LOG_LEVEL");
  if (forgotten && level == nullptr) SetLogLevel("error");
  ucp_worker_destroy(std::exchange(handle_, nullptr));
  if (forgotten && level == nullptr) SetLogLevel("warn");
}

std::vector<std::byte> WrapAddress(std::span<const std::byte> raw) {
  Envelope envelope = OurEnvelope();
  envelope.length = static_cast<uint32_t>(raw.size());
  envelope.crc32c = Crc32c(raw);
  std::vector<std::byte> out(sizeof envelope + raw.size());
  std::memcpy(out.data(), &envelope, sizeof envelope);
  if (!raw.empty()) std::memcpy(out.data() + sizeof envelope, raw.data(), raw.size());
  return out;
}

Result<std::vector<std::byte>> UnwrapAddress(std::span<const std::byte> envelope) {
  Envelope head;
  if (envelope.size() < sizeof head) return Invalid("ucx_address: too short");
  std::memcpy(&head, envelope.data(), sizeof head);
  const auto raw = envelope.subspan(sizeof head);
  if (head.magic != kMagic) return Invalid("ucx_address: magic is not \"DYUX\"");
  if (head.length != raw.size() || raw.empty() || raw.size() > kMaxAddress)
    return Invalid("ucx_address: length " + std::to_string(head.length) + " of " +
                   std::to_string(raw.size()) + " bytes");
  if (head.crc32c != Crc32c(raw)) return Invalid("ucx_address: crc32c does not match");
  const Envelope ours = OurEnvelope();
  if (head.major != ours.major || head.minor != ours.minor)
    return Unsupported("ucx_address: the peer has UCX " + std::to_string(head.major) + "." +
                       std::to_string(head.minor) + ", this process " + std::to_string(ours.major) +
                       "." + std::to_string(ours.minor));
  std::vector<std::byte> padded(kMaxAddress * 2);  // zeros behind it, should UCX read on
  std::memcpy(padded.data(), raw.data(), raw.size());
  return padded;
}

}  // namespace dyna::ucx
