// The store's state, shared by the files that implement its verbs: each file is one of them.
//
//   store.cc     the facade, tenants, sessions, stats     put.cc     admit, encode
//   writer.cc    begin, commit, abort                     lookup.cc  hits, leases
//   fetch.cc     decode, as stored
//   report.cc    statistics -> history -> weights         learn.cc   moments -> bases
//   drop.cc      live masks of policies that drop tokens, and of the token budget
//   placement.cc the price book and what new tiles take   pressure.cc  demote, move, evict, compact
//   disk.cc      spill, bank                              load.cc    read back
//   recover.cc   start and stop                           manage.cc  delete, clear, pin, opaque
//   inspect.cc   facts for people
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "daemon/policy/policy.h"
#include "daemon/policy/price_book.h"
#include "daemon/store/block_table.h"
#include "daemon/store/lease_table.h"
#include "daemon/store/open_work.h"
#include "daemon/store/store.h"
#include "daemon/store/store_context.h"

namespace dyna {

// A report that waits for its score job, and one whose result is being folded in slices.
struct PendingReport {
  Caller caller;
  wire::Report report;
  std::vector<std::byte> payload;
};
struct FoldWork {
  StoreContext* context = nullptr;
  wire::Report report;
  std::vector<BlockRef> chain;  // from the root
  std::vector<uint32_t> generations;
  struct Layer {
    uint16_t layer = 0;
    Status status;
    std::vector<float> x;  // [heads][tokens]
  };
  std::vector<Layer> layers;
  size_t next_layer = 0, next_block = 0;  // where folding goes on
};

// A chain whose live masks are being decided and applied (drop.cc).
struct DropWork;
struct DueDrop {
  TimePoint at;
  std::weak_ptr<Block> leaf;
};

// A block that no report has covered yet (young.cc).
struct Young {
  TimePoint until;
  std::weak_ptr<Block> block;
};

struct Store::Impl {
  Impl(Parts parts, StoreOptions opts);

  // ---- store.cc
  Tenant& TenantOf(TenantId id);
  StoreContext* Context(TenantId tenant, Fingerprint context);
  // Work on a codec thread, then `done` here; counted, so that a drain can wait for it.
  void RunCodec(size_t bytes, std::function<void()> work, std::function<void()> done);
  // Source or decoded bytes of one codec job: enough to amortise the hop, few enough to spread over
  // the threads; more where the backend is a device.
  size_t JobBytes() const { return std::max(size_t{512} << 10, backend.batch_bytes()); }
  void NeedTick();
  void Gone(Block& block, bool on_disk_too);  // out of the table, tiers and books
  // The one way to another state. False after a transition that is not legal: the block is then a
  // miss (gone from memory; what is on disk stays for the next start).
  bool Move(Block& block, BlockState next);

  // ---- placement.cc: bytes and price
  uint64_t Limit() const;    // what Charged may reach
  uint64_t Charged() const;  // arena in use + metadata + bases
  bool Fits(uint64_t bytes) const { return Charged() + bytes <= Limit(); }
  Result<Extent> Reserve(uint64_t bytes, uint64_t serial, bool nursed = false);
  // Live bytes that are not of booked tiles: headers, padding, metadata, raw.
  int64_t FixedBytes() const;
  uint64_t Target() const;  // Limit less a little: pressure begins here
  // As a put enters the book: never reported, no reuse. Views what it is given.
  static PricedSegment Fresh(const LadderSet& ladders, std::span<const record::Cell> cells,
                             const Shard& shard, int layer, const BlockHash& hash);
  static SegmentId IdOf(const StoreContext& ctx, const Shard& shard, int layer,
                        const BlockHash& hash, uint32_t index, BasisName basis);
  // ---- young.cc
  int16_t YoungEighths() const;  // what is added to log2 h
  uint64_t NurseryRoom() const;  // bytes of the arena, beside the budget
  // That many raw bytes of that class may stand there now; the oldest may have to go.
  bool NurseryTakes(QualityClass quality, uint64_t bytes);
  void StartYoung(const BlockRef& block);  // committed now
  void GrowUp(Block& block, Segment& segment);
  void YoungSlice();
  void EndYoung();
  // ---- anticipate.cc
  class Foresight;
  void Anticipate(StoreContext& ctx, TenantId tenant, const wire::Put& put);
  uint32_t ToBegin(TenantId tenant, const wire::Put& put) const;
  // ---- placement.cc: what new tiles take
  std::vector<TilePlan> PlanPut(StoreContext& ctx, TenantId tenant, const Shard& shard, int layer,
                                QualityClass quality, const BlockHash& hash, bool nursed,
                                BasisName* basis);
  bool Priced(const Block& block) const;   // its tiles may be demoted
  static bool Frozen(const Block& block);  // but not now: pinned, or a lease promised more
  // `cells`: of the block, or of the writer that the segment is still of.
  PricedSegment AsPriced(const Block& block, const Segment& segment,
                         std::span<const record::Cell> cells) const;
  // A writer's segments count at the price that they will have, though none shrinks before commit.
  void BookOpen(const Block& block, Writer& writer, Segment& segment);
  void UnbookOpen(const Block& block, const Writer& writer, Segment& segment);
  std::shared_ptr<const LadderSet> LaddersOf(const Block& block, const Segment& s,
                                             QualityClass quality);
  void Book(Block& block, Segment& segment);
  void Unbook(Block& block, Segment& segment);
  void BookAll(Block& block);
  void UnbookAll(Block& block);
  void BookLater(Block& block);  // its weight or leases changed: in a slice
  bool BookSlice(TimePoint until);
  void Charge(Block& block);  // recomputes what the budget counts beside the arena
  void Uncharge(Block& block);
  void Appraise(Block& block);  // effective class, mean bits
  static void PlanOfToday(const Block& block, const Segment& segment, std::vector<TilePlan>* plan);
  void UseBasis(StoreContext& ctx, BasisName name, int change);

  // ---- put.cc
  struct PutOp;
  struct EncodeWork;
  void EncodeBatch(const std::shared_ptr<PutOp>& op, StoreContext& ctx, const wire::Put& put,
                   std::vector<std::shared_ptr<EncodeWork>> batch);
  bool RetryPlain(EncodeWork& work);
  // The writer for this block, made if need be; null with *code set when nothing need be written.
  std::shared_ptr<Writer> BeginBlock(const Caller& caller, StoreContext& ctx, const wire::Put& put,
                                     size_t i, BlockRef* block, Status* status);
  Status CheckQuota(const Tenant& tenant);
  // What has expired may be what room is wanted for: all of it goes, soon.
  Status WantExpired(Status refusal);
  Status Admit(const Tenant& tenant);  // one more block: RETRY, QUOTA
  // Put again and held already: the later end and the higher class count, both were promised.
  void PutAgain(Block& block, const wire::Put& put);
  void LiveOn(Block& block, uint32_t ttl_ms);
  bool Outdoes(QualityClass quality, const Block& block) const;  // a put replaces what is held
  // A put heard EXISTS: from now on the block is held at that class, until a restart.
  void Promise(QualityClass quality, Block& block);
  // UNSUPPORTED, and the writer aborted: it would take the place of durable shards.
  Status Commit(const BlockRef& block, const std::shared_ptr<Writer>& writer);
  void FreeRoom(const Block& block, const Writer& writer);
  void EndWriter(Block& block, const std::shared_ptr<Writer>& writer);  // gives back what it held
  void Abort(const BlockRef& block, const std::shared_ptr<Writer>& writer);
  struct Session;
  void AbortOpen(Session& session);  // all of it
  void AbortLate(Session& session);  // what has waited too long for its client
  void Moved(Writer& writer);
  bool Expired(const Block& block) const {
    return block.expires_at_ms != 0 && block.expires_at_ms <= clock.UnixMillis();
  }
  void DropIfExpired(BlockRef* block);  // an expired one is as good as none

  // ---- disk.cc
  // `done` when the rows are there without which a block's own row is lost at the next start.
  void EnsureRows(StoreContext& ctx, SpillStore& store, bool to_bank, const record::BlockMeta& meta,
                  std::function<void(Status)> done);
  void RewriteContextRow(StoreContext& ctx);  // where it is
  record::BlockMeta MetaOf(const Block& block) const;
  void WriteBlock(const BlockRef& block, SpillStore& store, bool to_bank, record::BlockMeta meta,
                  std::function<void(Status)> done);
  struct DiskWrite;
  void WriteSealed(const std::shared_ptr<DiskWrite>& write, Status rows);
  void EndWrite(DiskWrite& write, Status status);
  void Persist(const BlockRef& block, std::function<void(Status)> done);
  void EndBanking(const BlockRef& block);
  void StartBanked(const BlockRef& block);
  void PersistHistory(const BlockRef& block);
  // Its rows, where a disk has the block: pinned or not, and till when it lives. `done`: the bank,
  // if it has the block, has synced that.
  void PersistPin(const BlockRef& block, std::function<void(Status)> done);
  void Spill(const BlockRef& block);
  // The bank has all that was committed of it, not only its first writer's shard.
  bool BankHolds(const Block& block) const;
  bool SpillHolds(const Block& block) const;
  bool HasDiskCopy(const Block& block) const { return SpillHolds(block) || BankHolds(block); }
  void ToSpilled(Block& block);  // REQUIRES a disk copy
  // Deletes what a disk has of it, also what is on its way: the deletion comes after the write.
  void DropSpillCopy(Block& block);
  void DropBankCopy(Block& block, std::function<void(Status)> done);

  // ---- load.cc
  // Its segments are those that the row lists, on a disk and not in RAM.
  void TakeRow(Block& block, const record::BlockMeta& row);
  void TakeBankCopy(Block& block);    // what is spilled is from now on the bank's copy
  void LeaveSpillCopy(Block& block);  // for the bank's; REQUIRES both, and that it is spilled
  void Load(const BlockRef& block, std::function<void(const Status&)> done);
  void FinishLoad(const BlockRef& block, Status status);
  void Adopt(record::BlockMeta meta, Tier from);  // at start

  // ---- manage.cc
  void SetPinned(Block& block, bool pinned);

  // ---- report.cc, learn.cc
  void Enqueue(PendingReport report);
  void StartReports();
  bool FoldSlice(TimePoint until);
  void FoldBlock(FoldWork& work, const FoldWork::Layer& layer, size_t i);
  void FeedTile(StoreContext& ctx, const wire::Put& put, int layer, std::vector<uint32_t> count,
                std::vector<float> sum, std::vector<float> scatter);
  bool LearningBudgetLeft(const StoreContext& ctx, int layer) const;
  void StartLearning(StoreContext& ctx);
  // omega that traffic has taught, where it is due and no profile said it.
  void LearnOmega(StoreContext& ctx);
  Status TakeOmega(StoreContext& ctx, const std::vector<std::vector<CellSensitivity>>& cells);
  void InstallBasis(StoreContext& ctx, int layer, std::shared_ptr<const Basis> basis);

  // ---- drop.cc
  bool Drops() const;          // chains are decided at all
  bool DropsByReport() const;  // once more after each report
  // Decides the chain that ends in `leaf` in a while, unless it turns out to go on.
  void DropLater(const BlockRef& leaf, std::chrono::milliseconds at_least = {});
  bool DropSlice(TimePoint until);
  void BeginDrop(const BlockRef& leaf);
  bool GatherDrop(TimePoint until);
  bool ApplyDrop(TimePoint until);
  bool DropTokens(const BlockRef& block, size_t segment, size_t place);
  static float DroppedShare(std::span<const TilePlan> plan);

  // ---- pressure.cc
  bool Pressure(TimePoint until);
  bool DemoteSlice(TimePoint until);
  // Hands what StartTranscode gathered to the codec: at the end of a tick at the latest.
  void FlushTranscodes();
  uint32_t TranscodesAtOnce() const;
  bool StartTranscode(const BlockRef& block, size_t segment, std::vector<TilePlan> plan,
                      const LadderSet& ladders);
  bool MoveColdBlocks(uint64_t excess);
  bool EvictFromSpill(uint64_t bytes);
  void CompactSlice();
  void ExpireSlice();

  // ---- parts
  const Clock& clock;
  Executor& loop;
  CodecRunner& codec;
  Backend& backend;
  Arena& arena;
  SpillStore* spill;
  SpillStore* bank;
  StoreOptions options;
  std::unique_ptr<Policy> policy;

  // ---- state
  BlockTable blocks;
  LeaseTable leases;
  PriceBook book;
  std::map<TenantId, Tenant> tenants;
  std::map<std::pair<TenantId, Fingerprint>, std::unique_ptr<StoreContext>> contexts;
  struct Session {
    std::list<OpenPut> writing;  // by the time when they last moved
    uint64_t open_bytes = 0;
  };
  std::map<SessionId, Session> sessions;  // those with open puts
  OpenWork open_work;                     // their writers, by kind
  uint64_t foreseen_begun = 0;            // of them, when Anticipate last looked
  Price foreseen_price = kFreePrice;      // what it then set

  uint64_t budget = 0;  // 0: the arena less headroom
  uint64_t aux_bytes = 0, history_bytes = 0, basis_bytes = 0, raw_bytes = 0, resident = 0;
  uint64_t pinned_bytes = 0;  // exact and pinned
  std::deque<std::weak_ptr<Block>> to_book, dirty_history;
  std::deque<PendingReport> reports;
  std::deque<DueDrop> drops_due;  // by time; at most kMaxDropsDue
  std::shared_ptr<uint64_t> nursery = std::make_shared<uint64_t>(0);  // bytes of young segments
  std::deque<Young> young;                                            // by time; at most kMaxYoung
  std::shared_ptr<DropWork> drop;                                     // under way; one at a time
  uint64_t reports_bytes = 0;
  uint32_t reports_running = 0;
  std::deque<std::unique_ptr<FoldWork>> folds;
  std::weak_ptr<Block> rebook_at, sweep_at, expire_at;  // where walks over the table go on
  bool rebook = false;      // a new basis: plain tiles may take its levels
  bool sweep_idle = false;  // the last walk found nothing to demote
  int expired_rounds = 0;   // of the walk over what has expired, to be made at once
  size_t sweep_found = 0;   // in this walk
  uint32_t transcodes = 0, learning = 0;
  uint64_t transcode_copies = 0;  // what they write: counted beside what it takes the place of
  // Demotions that become one call of the backend.
  struct PendingTranscode {
    TranscodeJob* job;
    std::shared_ptr<void> owner;  // of what `job` names
    std::function<void()> done;   // on the loop
  };
  std::vector<PendingTranscode> pending_transcodes;
  size_t pending_transcode_bytes = 0;
  uint64_t transcode_gain = 0;  // bytes that running demotions will free
  int64_t overshoot = 0;        // tile bytes asked for beyond the excess (padding)
  uint64_t disk_bytes = 0;      // on their way to a disk
  uint64_t moving_bytes = 0;    // of them, those that leave RAM for it
  uint64_t in_flight = 0;       // codec jobs and disk operations
  Arena::Plan plan;             // of the compaction under way
  uint64_t open_bytes = 0;      // of blocks that are not complete: they cannot shrink yet
  uint64_t encoding = 0;        // segments of theirs that a codec thread has
  TimePoint open_moved;         // when one of them last got further
  uint64_t wanted_room = 0;     // somebody was told RETRY for want of this much
  uint64_t wanted_range = 0;    // an allocation failed although there was room
  bool draining = false;
  TimePoint retry_disk_at;  // a full or failing spill is left alone till then
  std::function<void()> on_busy, on_idle;
  std::function<void(SessionId, uint64_t)> on_revoked;
  StoreStats counts;
};

}  // namespace dyna
