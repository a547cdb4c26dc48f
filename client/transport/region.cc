#include "client/transport/region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "client/base/os.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace dyna {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

uint64_t RoundToPage(uint64_t bytes) {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

Result<std::byte*> MapShared(int fd, uint64_t size) {
  void* p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return ErrnoStatus("region: cannot map", errno, StatusCode::kInvalid);
  ::madvise(p, size, MADV_DONTFORK);
  ::madvise(p, size, MADV_HUGEPAGE);  // where tmpfs has huge pages on advice
  return static_cast<std::byte*>(p);
}

}  // namespace

Status CheckStrided(uint64_t size, uint64_t offset, uint64_t row_bytes,
                    std::span<const Axis> axes) {
  using Wide = __int128;  // a product of a count and a stride always fits
  constexpr Wide kLimit = Wide{1} << 64;
  if (row_bytes == 0) return Invalid("region: row of 0 bytes");
  Wide low = offset, high = Wide{offset} + row_bytes;
  for (size_t i = 0; i < axes.size(); ++i) {
    if (axes[i].count == 0) return Invalid("region: count 0 on axis " + std::to_string(i));
    const Wide reach = Wide{axes[i].count - 1} * axes[i].stride;
    (reach < 0 ? low : high) += reach;
    if (low < 0 || high > kLimit)
      return Invalid("region: axis " + std::to_string(i) + " of stride " +
                     std::to_string(axes[i].stride) + " leaves the region");
  }
  if (high > size)
    return Invalid("region: access up to byte " + std::to_string(static_cast<uint64_t>(high - 1)) +
                   " of a region of " + std::to_string(size));
  return Status::Ok();
}

Result<std::shared_ptr<Region>> Region::Allocate(uint64_t bytes) {
  if (bytes == 0 || bytes > uint64_t{1} << 46)
    return Invalid("region: size " + std::to_string(bytes));
  const uint64_t size = RoundToPage(bytes);
  UniqueFd fd(::memfd_create("dyna-region", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return ErrnoStatus("region: memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
    return ErrnoStatus("region: size " + std::to_string(size), errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) return ErrnoStatus("region: seals", errno);
  DYNA_ASSIGN_OR_RETURN(std::byte * base, MapShared(fd.get(), size));
  std::shared_ptr<Region> region(new Region(std::move(fd), base, size));
  // A first touch costs more than the copy it serves, and out of memory is better told now.
  if (::madvise(base, size, MADV_POPULATE_WRITE) != 0) {
    if (errno != EINVAL) return ErrnoStatus("region: no memory for it", errno, StatusCode::kQuota);
    for (uint64_t at = 0; at < size; at += 4096) base[at] = std::byte{0};  // Linux before 5.14
  }
  return region;
}

Region::~Region() {
  if (!fork_guard_.forked()) ::munmap(base_, size_);  // a child has something else there
}

Result<UniqueFd> Region::DuplicateFd() const {
  UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return ErrnoStatus("region: dup", errno);
  return copy;
}

Result<uint64_t> Region::OffsetOf(std::span<const std::byte> memory) const {
  const auto begin = reinterpret_cast<uintptr_t>(memory.data());
  const auto base = reinterpret_cast<uintptr_t>(base_);
  if (begin < base || begin - base > size_ || memory.size() > size_ - (begin - base))
    return Invalid("memory is not inside the region");
  return uint64_t{begin - base};
}

Result<std::shared_ptr<MappedRegion>> MappedRegion::Map(UniqueFd fd, uint64_t size,
                                                        uint64_t max_bytes) {
  if (size == 0) return Invalid("region: size 0");
  if (size > max_bytes)
    return TooLarge("region: size " + std::to_string(size) + ", at most " +
                    std::to_string(max_bytes));
  struct statfs fs {};
  if (::fstatfs(fd.get(), &fs) != 0) return ErrnoStatus("region: fd", errno, StatusCode::kInvalid);
  if (fs.f_type != TMPFS_MAGIC)
    return Unsupported("region: not a memfd on tmpfs (huge pages and files can fault under us)");
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    return Invalid("region: the memfd lacks the seals F_SEAL_SHRINK and F_SEAL_GROW");
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus("region: fstat", errno);
  // After the seals: from here on it cannot change.
  if (static_cast<uint64_t>(st.st_size) < size)
    return Invalid("region: size " + std::to_string(size) + " of a memfd of " +
                   std::to_string(st.st_size));
  const uint64_t mapped = RoundToPage(size);
  DYNA_ASSIGN_OR_RETURN(std::byte * base, MapShared(fd.get(), mapped));
  std::shared_ptr<MappedRegion> region(new MappedRegion(base, size));
  if (!region->guard_.active())
    return Status(StatusCode::kQuota,
                  "region: more than " + std::to_string(kMaxSigbusGuards) + " regions are mapped");
  return region;
}

MappedRegion::MappedRegion(std::byte* base, uint64_t size)
    : ClientMemory(base, size, /*on_device=*/false), guard_(base, RoundToPage(size)) {}

MappedRegion::~MappedRegion() {
  guard_.Release();  // before the addresses can be somebody else's
  ::munmap(base_, RoundToPage(size_));
}

void MappedRegion::Prefault() const { ::madvise(base_, RoundToPage(size_), MADV_POPULATE_READ); }

Result<std::span<std::byte>> MappedRegion::Range(uint64_t offset, uint64_t length) const {
  if (offset > size_ || length > size_ - offset)
    return Invalid("region: " + std::to_string(length) + " bytes at offset " +
                   std::to_string(offset) + " of a region of " + std::to_string(size_));
  return std::span<std::byte>(base_ + offset, length);
}

ClientMemory::~ClientMemory() {
  for (auto& released : released_) released();
}

Result<std::byte*> ClientMemory::Strided(uint64_t offset, uint64_t row_bytes,
                                         std::span<const Axis> axes) const {
  DYNA_RETURN_IF_ERROR(CheckStrided(size_, offset, row_bytes, axes));
  return base_ + offset;
}

Status ClientMemory::CheckIntact() const {
  if (!poisoned()) return Status::Ok();
  return Invalid("region: its memory went away while it was in use; register another one");
}

void ClientMemory::OnReleased(std::function<void()> released) {
  std::lock_guard lock(mutex_);
  released_.push_back(std::move(released));
}

std::vector<std::function<void()>> ClientMemory::TakeReleased() {
  std::lock_guard lock(mutex_);
  return std::exchange(released_, {});
}

}  // namespace dyna
