#include "client/test_daemon.h"

#include <cstring>
#include <utility>

#include "client/kv_memory.h"
#include "client/transport/socket_channel.h"
#include "schemas/sha256.h"

namespace dyna {

struct TestDaemon::Session : FrameSink, std::enable_shared_from_this<TestDaemon::Session> {
  explicit Session(TestDaemon& owner) : d(owner) {}

  Admission OnFrame(const InFrame& frame) override {
    auto message =
        wire::Parse({reinterpret_cast<const uint8_t*>(frame.control.data()), frame.control.size()});
    if (!message.ok()) return Admission::Close(message.status());
    const uint64_t id = frame.header.request_id;
    d.max_in_flight = std::max(d.max_in_flight.load(), ++d.in_flight);
    std::shared_ptr<UniqueFd> fd;
    if (!frame.fds.empty()) fd = std::make_shared<UniqueFd>(std::move(frame.fds[0]));
    auto payload = std::make_shared<std::vector<std::byte>>(frame.header.payload_len);
    d.payload_bytes += payload->size();
    // Answers come from the loop, not from inside this call: several can be in flight.
    auto handle = [self = shared_from_this(), id, m = *message, payload, fd](const Status&) {
      asio::post(self->d.loop_, [self, id, m, payload, fd] {
        --self->d.in_flight;
        if (self->d.muted_ == static_cast<int>(wire::TypeOf(m)) || !self->channel) return;
        std::vector<std::byte> answer;
        const wire::Message reply = self->Handle(m, *payload, fd.get(), answer);
        self->Send(id, reply, std::move(answer));
      });
    };
    if (payload->empty()) {
      handle({});
      return Admission::Handled();
    }
    return Admission::Into(*payload, handle);
  }
  void OnClosed(const Status&) override {
    channel.reset();
    asio::post(d.loop_, [this, self = shared_from_this()] { d.sessions_.erase(self); });
  }

  void Send(uint64_t id, const wire::Message& m, std::vector<std::byte> payload) {
    OutFrame out;
    out.type = static_cast<uint8_t>(wire::TypeOf(m));
    out.request_id = id;
    const auto control = wire::Serialize(m);
    out.control.resize(control.size());
    std::memcpy(out.control.data(), control.data(), control.size());
    auto held = std::make_shared<std::vector<std::byte>>(std::move(payload));
    if (!held->empty()) out.payload.push_back(*held);
    (void)channel->Send(std::move(out), [held](const Status&) {});
  }

  // Rows of one segment, at most once each way.
  void Rows(const wire::Layout& l, size_t s, int heads, int head_dim, std::byte* dense, bool in) {
    const auto row = static_cast<size_t>(head_dim * DTypeBytes(l.dtype));
    std::byte* base = regions.at(l.region)->Range(0, regions.at(l.region)->size())->data();
    for (int h = 0; h < heads; ++h)
      for (bool v : {false, true})
        for (int t = 0; t < kBlockTokens; ++t, dense += row) {
          std::byte* at = base + (v ? l.v_offsets[s] : l.k_offsets[s]) +
                          h * (v ? l.v_head_stride : l.k_head_stride) +
                          t * (v ? l.v_token_stride : l.k_token_stride);
          if (in)
            std::memcpy(dense, at, row);
          else
            std::memcpy(at, dense, row);
        }
  }

  wire::Message Handle(const wire::Message& m, const std::vector<std::byte>& payload, UniqueFd* fd,
                       std::vector<std::byte>& answer) {
    if (std::holds_alternative<wire::Hello>(m)) {
      ++d.connections;
      wire::HelloReply r;
      r.instance_id = d.instance_;
      r.session_token[0] = 7;
      r.request_credits = d.request_credits;
      r.byte_credits = d.byte_credits;
      r.server_version = "test";
      channel->SetToken(r.session_token);
      return r;
    }
    if (const auto* r = std::get_if<wire::RegisterRegion>(&m)) {
      auto mapped = MappedRegion::Map(std::move(*fd), r->size, 1ull << 30);
      if (!mapped.ok()) return wire::RegisterRegionReply{mapped.status(), 0};
      regions[++next_region] = *mapped;
      ++d.registers;
      return wire::RegisterRegionReply{{}, next_region};
    }
    if (const auto* r = std::get_if<wire::DeregisterRegion>(&m)) {
      regions.erase(r->region);
      ++d.deregisters;
      return wire::StatusReply{};
    }
    if (const auto* o = std::get_if<wire::OpenContext>(&m)) {
      ++d.opens;
      const std::string bytes = CanonicalBytes(o->spec);
      const Fingerprint f = Sha256Name(std::as_bytes(std::span(bytes)));
      d.contexts_[f] = o->spec;
      open.insert(f);
      return wire::OpenContextReply{{}, f, true};
    }
    if (const auto* p = std::get_if<wire::Put>(&m)) return HandlePut(*p, payload);
    if (const auto* l = std::get_if<wire::Lookup>(&m)) {
      if (!open.count(l->context)) return Unknown();
      wire::LookupReply r;
      bool leading = true;
      for (const BlockHash& h : l->hashes) {
        const bool hit = d.segments_.count({h, l->shard.layer_begin}) > 0;
        leading = leading && hit;
        if (leading) ++r.run;
        r.hits.push_back(
            {hit ? StatusCode::kOk : StatusCode::kMiss, hit ? Tier::kHost : Tier::kNone, 0, 16, 0});
      }
      if (l->lease && r.run > 0) {
        r.lease = d.next_lease_++;
        leases[r.lease] = l->hashes;
      }
      return r;
    }
    if (const auto* f = std::get_if<wire::Fetch>(&m)) return HandleFetch(*f, answer);
    if (const auto* r = std::get_if<wire::ReleaseLease>(&m)) {
      leases.erase(r->lease);
      ++d.releases;
      return wire::StatusReply{};
    }
    if (const auto* x = std::get_if<wire::Delete>(&m)) {
      uint64_t n = 0;
      for (const BlockHash& h : x->hashes) n += d.segments_.erase({h, 0});
      return wire::CountReply{{}, n};
    }
    if (const auto* o = std::get_if<wire::PutOpaque>(&m)) {
      d.opaque_[o->key] = payload;
      return wire::StatusReply{};
    }
    if (const auto* o = std::get_if<wire::GetOpaque>(&m)) {
      const auto it = d.opaque_.find(o->key);
      if (it == d.opaque_.end())
        return wire::OpaqueReply{Status(StatusCode::kMiss, "no such object"), Tier::kNone};
      answer = it->second;
      return wire::OpaqueReply{{}, Tier::kHost};
    }
    if (std::holds_alternative<wire::Query>(m)) {
      answer.assign(2, std::byte{'{'});
      answer[1] = std::byte{'}'};
      return wire::QueryReply{};
    }
    if (std::holds_alternative<wire::Report>(m)) return wire::StatusReply{};
    return wire::StatusReply{Unsupported("the test daemon does not know this")};
  }

  static wire::Message Unknown() {
    return wire::StatusReply{Status(StatusCode::kContextUnknown, "open it first")};
  }

  wire::Message HandlePut(const wire::Put& p, const std::vector<std::byte>& payload) {
    ++d.puts;
    d.put_ttl_ms = p.ttl_ms;
    if (!open.count(p.context)) return Unknown();
    const ContextSpec& spec = d.contexts_[p.context];
    const auto heads = static_cast<uint16_t>(p.shard.head_end - p.shard.head_begin);
    wire::PutReply r;
    size_t at = 0;
    for (size_t b = 0; b < p.hashes.size(); ++b)
      for (uint16_t l = 0; l < p.layer_count; ++l) {
        const auto layer = static_cast<uint16_t>(p.layer_begin + l);
        const uint16_t dim = spec.layers[layer].head_dim;
        std::vector<std::byte> dense(DenseSegmentBytes(heads, dim, p.layout.dtype));
        if (p.layout.region != 0)
          Rows(p.layout, r.segments.size(), heads, dim, dense.data(), true);
        else
          std::memcpy(dense.data(), payload.data() + at, dense.size());
        at += dense.size();
        d.segments_[{p.hashes[b], layer}] = std::move(dense);
        r.segments.push_back({StatusCode::kOk, 0, 1});
      }
    d.max_frame_segments = std::max<uint64_t>(d.max_frame_segments, r.segments.size());
    return r;
  }

  wire::Message HandleFetch(const wire::Fetch& f, std::vector<std::byte>& answer) {
    ++d.fetches;
    if (!leases.count(f.lease))
      return wire::StatusReply{Status(StatusCode::kLeaseLost, "no such lease")};
    const ContextSpec& spec = d.contexts_[f.context];
    const auto heads = static_cast<uint16_t>(f.head_end - f.head_begin);
    wire::FetchReply r;
    for (uint32_t b = 0; b < f.block_count; ++b)
      for (uint16_t l = 0; l < f.layer_count; ++l) {
        const auto layer = static_cast<uint16_t>(f.layer_begin + l);
        const uint16_t dim = spec.layers[layer].head_dim;
        const BlockHash& hash = leases[f.lease][f.block_begin + b];
        const auto it = d.segments_.find({hash, layer});
        r.tiers.push_back(Tier::kHost);
        if (it == d.segments_.end()) {
          r.segments.push_back({StatusCode::kMiss, 0, 0});
          if (r.status.ok()) r.status = Status(StatusCode::kMiss, "dropped");
          continue;
        }
        const uint64_t head_bytes = DenseSegmentBytes(1, dim, spec.dtype);
        std::span<std::byte> dense(it->second);
        r.segments.push_back({StatusCode::kOk, 0, static_cast<uint32_t>(dense.size())});
        if (f.form == wire::Form::kAsStored) {
          const auto stored = Encode(f, spec, hash, layer, dense);
          r.segments.back().bytes = static_cast<uint32_t>(stored.size());
          answer.insert(answer.end(), stored.begin(), stored.end());
          continue;
        }
        dense = dense.subspan(f.head_begin * head_bytes, heads * head_bytes);
        if (f.layout.region != 0)
          Rows(f.layout, r.segments.size() - 1, heads, dim, dense.data(), false);
        else
          answer.insert(answer.end(), dense.begin(), dense.end());
      }
    return r;
  }

  std::vector<std::byte> Encode(const wire::Fetch& f, const ContextSpec& spec,
                                const BlockHash& hash, uint16_t layer, std::span<std::byte> dense) {
    const LayerShape& shape = spec.layers[layer];
    EncodeJob job;
    job.id = {f.context, 0, hash, 1, layer, 0, shape.kv_heads, shape.head_dim, spec.dtype};
    const int64_t row = shape.head_dim * DTypeBytes(spec.dtype), tile = kBlockTokens * row;
    job.source = {dense.data(), dense.data() + tile, row, 2 * tile, row, 2 * tile, spec.dtype};
    const std::vector<TilePlan> plan(shape.kv_heads);
    job.plan = plan;
    std::vector<std::byte> out(EncodedBytes(job.id, plan, 0, nullptr));
    job.out = out;
    d.backend_->Encode({&job, 1});
    if (!job.status.ok()) return {};
    SealSegment(out);
    return out;
  }

  TestDaemon& d;
  std::shared_ptr<Channel> channel;
  std::map<uint32_t, std::shared_ptr<MappedRegion>> regions;
  std::map<uint64_t, std::vector<BlockHash>> leases;
  std::set<Fingerprint> open;
  uint32_t next_region = 0;
};

TestDaemon::TestDaemon(const std::string& path) {
  auto backend = MakeCpuBackend();
  if (backend.ok()) backend_ = std::move(*backend);
  SocketEndpoint endpoint;
  endpoint.path = path;
  auto listener = SocketListener::Open(loop_, endpoint, 0600, [this](UniqueFd socket, auto) {
    auto session = std::make_shared<Session>(*this);
    auto channel = MakeSocketChannel(loop_, std::move(socket), {}, session.get());
    if (!channel.ok()) return;
    session->channel = std::move(*channel);
    sessions_.insert(session);
  });
  if (!listener.ok()) std::abort();
  listener_ = std::move(*listener);
  thread_ = std::thread([this] { loop_.run(); });
}

TestDaemon::~TestDaemon() {
  Resume();
  OnLoop([this] { listener_.reset(); });
  DropConnections();
  asio::post(loop_, [this] { loop_.stop(); });
  thread_.join();
}

void TestDaemon::OnLoop(std::function<void()> task) {
  std::promise<void> done;
  asio::post(loop_, [&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

void TestDaemon::Stall() {
  stalled_ = std::make_unique<std::promise<void>>();
  asio::post(loop_, [resumed = stalled_->get_future().share()] { resumed.wait(); });
}
void TestDaemon::Resume() {
  if (const auto stalled = std::exchange(stalled_, nullptr)) stalled->set_value();
}

void TestDaemon::DropConnections() {
  OnLoop([this] {
    ++instance_;
    for (const auto& s : sessions_)
      if (s->channel) {
        s->channel->Close();
        s->channel.reset();
      }
    sessions_.clear();
  });
}

void TestDaemon::RevokeLeases() {
  OnLoop([this] {
    for (const auto& s : sessions_)
      for (const auto& [id, hashes] : s->leases)
        if (s->channel) s->Send(0, wire::LeaseRevoked{id}, {});
  });
}

}  // namespace dyna
