// One function a message: check what needs the session, ask the store, reply.
#include <algorithm>

#include "client/base/log.h"
#include "client/base/os.h"
#include "daemon/net/session.h"

namespace dyna {
namespace {

MemoryGuard GuardOf(std::shared_ptr<ClientMemory> region) {
  MemoryGuard guard;
  guard.intact = [r = region.get()] { return r->CheckIntact(); };
  guard.keep = std::move(region);
  return guard;
}

std::vector<std::byte> Copy(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Hello& m) {
  wire::HelloReply reply;
  reply.instance_id = host_.instance_id;
  reply.server_version = host_.version;
  name_ = m.client_name;
  if (host_.draining) {
    reply.status = Status(StatusCode::kRetry, "the daemon is stopping", 1000);
    Reply(r, reply, reply.status.code());
    return Admission::Handled();
  }
  if (m.version != wire::kVersion) {
    reply.status = Unsupported("protocol version " + std::to_string(m.version) +
                               "; this daemon speaks " + std::to_string(wire::kVersion));
    Reply(r, reply, reply.status.code());
    return Admission::Handled();
  }
  RandomBytes(std::as_writable_bytes(std::span(token_)));
  reply.session_token = token_;
  reply.request_credits = host_.limits.requests;
  reply.byte_credits = host_.limits.request_bytes;
  reply.features = wire::kFeatureMasks | wire::kFeatureAsStored;
  if (host_.shared != nullptr) reply.features |= wire::kFeatureDeviceRegions;
  if (!m.ucx_address.empty()) ConnectUcx(std::as_bytes(std::span(m.ucx_address)), &reply);
  if (!reply.status.ok()) {
    token_ = {};
    reply.session_token = {};
    Reply(r, reply, reply.status.code());
    return Admission::Handled();
  }
  greeted_ = true;
  Reply(r, reply, StatusCode::kOk);
  socket_.channel->SetToken(token_);
  LogDebug("client {} connected: pid {} uid {} ucx {}", name_, peer_.pid, peer_.uid,
           ucx_ ? "on" : "off");
  return Admission::Handled();
}

// Whether to go on without UCX is the client's to decide; a damaged address ends its Hello.
void Session::ConnectUcx(std::span<const std::byte> peer, wire::HelloReply* reply) {
  const auto ucx = host_.ucx();
  if (!ucx.ok()) return LogDebug("UCX: {}", ucx.status().ToString());
  const auto refuse = [&](const Status& status) {
    if (status.code() == StatusCode::kInvalid)
      reply->status = status;
    else
      LogWarn("client {} (pid {}): no UCX channel: {}", name_, peer_.pid, status.ToString());
  };
  const auto end = (*ucx)->Open();
  if (!end.ok()) return refuse(end.status());
  auto port = std::make_unique<Port>(*this);
  auto channel = (*end)->Connect(peer, token_, ChannelOptions{}, port.get());
  if (!channel.ok()) return refuse(channel.status());
  port->channel = std::move(*channel);
  ucx_ = std::move(port);
  reply->features |= wire::kFeatureUcx;
  const auto* address = reinterpret_cast<const uint8_t*>((*end)->address().data());
  reply->ucx_address.assign(address, address + (*end)->address().size());
}

Admission Session::Handle(const RequestRef& r, const InFrame& f, const wire::OpenContext& m) {
  auto open = [this, r, m](std::span<const std::byte> profile) {
    auto opened = host_.store.OpenContext(caller_, m.spec, profile);
    wire::OpenContextReply reply;
    if (opened.ok()) {
      reply.context = opened->context;
      reply.created = opened->created;
    } else {
      reply.status = opened.status();
    }
    Reply(r, reply, reply.status.code());
  };
  if (f.header.payload_len == 0) {
    open({});
    return Admission::Handled();
  }
  return Receive(r, f.header.payload_len, [open](auto buffer) { open(buffer->bytes()); });
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Lookup& m) {
  const wire::LookupReply reply = host_.store.Lookup(caller_, m);
  Reply(r, reply, reply.status.code());
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::ReleaseLease& m) {
  const bool known = host_.store.ReleaseLease(caller_, m.lease);
  ReplyStatus(
      r, known ? Status() : Status(StatusCode::kLeaseLost, "the lease is unknown or has expired"));
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame& f, wire::Put& m) {
  wire::PutReply reply;
  const auto answer = [&] {
    Reply(r, reply, reply.status.code());
    return Admission::Refuse();
  };
  const ContextSpec* spec = host_.store.FindContext(caller_.tenant, m.context);
  if (spec == nullptr) {
    reply.status = Status(StatusCode::kContextUnknown, "open the context first");
    return answer();
  }
  const SegmentGrid grid{*spec,
                         static_cast<uint32_t>(m.hashes.size()),
                         m.layer_begin,
                         m.layer_count,
                         m.shard.head_begin,
                         m.shard.head_end};
  if (reply.status = CheckGrid(grid); !reply.status.ok()) return answer();
  auto done = [this, r](wire::PutReply result) {
    const StatusCode code = result.status.code();
    Reply(r, result, code);
  };
  if (m.layout.region != 0) {
    auto region = FindRegion(m.layout.region);
    if (!region.ok())
      reply.status = region.status();
    else if (f.header.payload_len != 0)
      reply.status = Invalid("a put that names a region has no payload");
    if (!reply.status.ok()) return answer();
    auto views = RegionViews(grid, m.layout, **region, false);
    if (!views.ok()) {
      reply.status = views.status();
      return answer();
    }
    host_.store.Put(caller_, m, ReadOnly(*views), GuardOf(*region), std::move(done));
    return Admission::Handled();
  }
  const uint64_t expected = CanonicalBytes(grid, m.layout.dtype);
  if (f.header.payload_len != expected) {
    reply.status = Invalid("payload of " + std::to_string(f.header.payload_len) + " bytes, " +
                           std::to_string(expected) + " expected");
    return answer();
  }
  if (!host_.store.WantsPut(caller_, m, &reply)) return answer();  // no byte need move
  return Receive(r, expected, [this, r, m, done](std::shared_ptr<StagingPool::Buffer> buffer) {
    const ContextSpec* now = host_.store.FindContext(caller_.tenant, m.context);
    const SegmentGrid again{*now,
                            static_cast<uint32_t>(m.hashes.size()),
                            m.layer_begin,
                            m.layer_count,
                            m.shard.head_begin,
                            m.shard.head_end};
    auto views = CanonicalViews(again, m.layout.dtype, buffer->bytes());
    host_.store.Put(caller_, m, ReadOnly(views), MemoryGuard{buffer, {}}, done);
  });
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Fetch& m) {
  wire::FetchReply reply;
  const auto answer = [&] {
    Reply(r, reply, reply.status.code());
    return Admission::Handled();
  };
  const ContextSpec* spec = host_.store.FindContext(caller_.tenant, m.context);
  if (spec == nullptr) {
    reply.status = Status(StatusCode::kContextUnknown, "open the context first");
    return answer();
  }
  const SegmentGrid grid{*spec,         m.block_count, m.layer_begin,
                         m.layer_count, m.head_begin,  m.head_end};
  if (reply.status = CheckGrid(grid); !reply.status.ok()) return answer();
  if (m.form == wire::Form::kAsStored) {
    host_.store.Fetch(caller_, m, {}, {}, [this, r](Store::Fetched out) {
      auto bytes = std::make_shared<std::vector<std::byte>>(std::move(out.payload));
      Reply(r, out.reply, out.reply.status.code(), {std::span<const std::byte>(*bytes)},
            [bytes](const Status&) {});
    });
    return Admission::Handled();
  }
  if (m.layout.region != 0) {
    auto region = FindRegion(m.layout.region);
    if (!region.ok()) {
      reply.status = region.status();
      return answer();
    }
    auto views = RegionViews(grid, m.layout, **region, true);
    if (!views.ok()) {
      reply.status = views.status();
      return answer();
    }
    host_.store.Fetch(
        caller_, m, std::move(*views), GuardOf(*region),
        [this, r](Store::Fetched out) { Reply(r, out.reply, out.reply.status.code()); });
    return Admission::Handled();
  }
  const uint64_t bytes = CanonicalBytes(grid, m.layout.dtype);
  if (bytes > host_.limits.request_bytes) {
    reply.status = TooLarge("fetch of " + std::to_string(bytes) +
                            " bytes in one message (limits.request_bytes)");
    return answer();
  }
  auto buffer = host_.staging->Take(bytes);
  if (!buffer.ok()) {
    reply.status = buffer.status();
    return answer();
  }
  auto views = CanonicalViews(grid, m.layout.dtype, (*buffer)->bytes());
  host_.store.Fetch(caller_, m, std::move(views), MemoryGuard{*buffer, {}},
                    [this, r, buffer = *buffer](Store::Fetched out) {
                      // A segment that is a miss has undefined bytes: it never travels (design 5).
                      for (const auto& s : out.reply.segments)
                        if (s.status != StatusCode::kOk) {
                          Reply(r, out.reply, out.reply.status.code());
                          return;
                        }
                      Reply(r, out.reply, out.reply.status.code(),
                            {std::span<const std::byte>(buffer->bytes())},
                            [buffer](const Status&) {});
                    });
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame& f, const wire::Report& m) {
  if (f.header.payload_len == 0) return Refuse(r, Invalid("a report without a payload"));
  if (!TakeReportBytes(f.header.payload_len))
    return Refuse(r, {StatusCode::kRetry, "more statistics than limits.report_bytes_per_s", 1000});
  return Receive(r, f.header.payload_len, [this, r, m](auto buffer) {
    host_.store.Report(caller_, m, Copy(buffer->bytes()),
                       [this, r](Status status) { ReplyStatus(r, status); });
  });
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Delete& m) {
  Reply(r, host_.store.Delete(caller_, m), StatusCode::kOk);
  return Admission::Handled();
}
Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Clear& m) {
  const auto reply = host_.store.Clear(caller_, m);
  Reply(r, reply, reply.status.code());
  return Admission::Handled();
}
Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Pin& m) {
  host_.store.Pin(caller_, m,
                  [this, r](wire::CountReply reply) { Reply(r, reply, reply.status.code()); });
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::GetBasis& m) {
  auto bytes = std::make_shared<std::vector<std::byte>>();
  const auto reply = host_.store.GetBasis(caller_, m, bytes.get());
  Reply(r, reply, reply.status.code(), {std::span<const std::byte>(*bytes)},
        [bytes](const Status&) {});
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame& f, const wire::PutOpaque& m) {
  if (f.header.payload_len == 0) return Refuse(r, Invalid("opaque object: 0 bytes"));
  return Receive(r, f.header.payload_len, [this, r, m](auto buffer) {
    host_.store.PutOpaque(caller_, m, Copy(buffer->bytes()),
                          [this, r](Status status) { ReplyStatus(r, status); });
  });
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::GetOpaque& m) {
  host_.store.GetOpaque(caller_, m,
                        [this, r](wire::OpaqueReply reply, std::vector<std::byte> object) {
                          auto bytes = std::make_shared<std::vector<std::byte>>(std::move(object));
                          Reply(r, reply, reply.status.code(), {std::span<const std::byte>(*bytes)},
                                [bytes](const Status&) {});
                        });
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::Query& m) {
  auto json = host_.query(caller_, m);
  wire::QueryReply reply;
  auto text = std::make_shared<std::string>();
  if (json.ok())
    *text = std::move(*json);
  else
    reply.status = json.status();
  Reply(r, reply, reply.status.code(), {std::as_bytes(std::span(text->data(), text->size()))},
        [text](const Status&) {});
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::SetBudget& m) {
  if (!host_.is_operator(peer_.uid)) {
    ++host_.stats.auth_failures;
    return Refuse(r, {StatusCode::kUnauthenticated,
                      "only root and the daemon's own user may set the budget"});
  }
  host_.store.SetBudget(m.bytes);
  LogInfo("budget set to {} bytes by uid {}", m.bytes, peer_.uid);
  ReplyStatus(r, {});
  return Admission::Handled();
}

Admission Session::Handle(const RequestRef& r, const InFrame&, const wire::BankDrop& m) {
  host_.store.BankDrop(caller_, m,
                       [this, r](wire::CountReply reply) { Reply(r, reply, reply.status.code()); });
  return Admission::Handled();
}

}  // namespace dyna
