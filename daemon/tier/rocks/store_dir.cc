#include "daemon/tier/rocks/store_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "client/base/log.h"
#include "client/base/os.h"

namespace dyna {
namespace {

namespace fs = std::filesystem;

Result<std::string> ReadSmallFile(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return ErrnoStatus("cannot open " + path, errno);
  char buffer[256];
  const ssize_t n = read(fd.get(), buffer, sizeof buffer);
  if (n < 0) return ErrnoStatus("cannot read " + path, errno);
  return std::string(buffer, static_cast<size_t>(n));
}

Status SyncPath(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd || fsync(fd.get()) != 0) return ErrnoStatus("cannot sync " + path, errno);
  return {};
}

// The first parents that do not exist are made too, all of them private.
Status MakePrivateDirs(const std::string& path) {
  struct stat st;
  if (lstat(path.c_str(), &st) == 0) {
    if (!S_ISDIR(st.st_mode)) return Invalid(path + ": not a directory");
    if (st.st_uid != geteuid()) return Invalid(path + ": belongs to another user");
    return {};
  }
  const std::string parent = fs::path(path).parent_path().string();
  if (!parent.empty() && access(parent.c_str(), F_OK) != 0)
    DYNA_RETURN_IF_ERROR(MakePrivateDirs(parent));
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return ErrnoStatus("cannot make " + path, errno, StatusCode::kInvalid);
  return {};
}

}  // namespace

Result<StoreDir> StoreDir::Open(const std::string& path, std::string_view format) {
  StoreDir dir(path, std::string(format) + "\n");
  DYNA_RETURN_IF_ERROR(dir.CreateAndLock());
  DYNA_ASSIGN_OR_RETURN(const bool matches, dir.FormatMatches());
  if (!matches) DYNA_RETURN_IF_ERROR(dir.SetAside("it is of another format or version"));
  return dir;
}

Status StoreDir::CreateAndLock() {
  DYNA_RETURN_IF_ERROR(MakePrivateDirs(path_));
  if (chmod(path_.c_str(), 0700) != 0) return ErrnoStatus("cannot make private " + path_, errno);
  const std::string lock = path_ + "/LOCK";
  UniqueFd fd(open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return ErrnoStatus("cannot open " + lock, errno);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus("cannot lock " + lock, errno);
    auto holder = ReadSmallFile(lock);
    return Invalid(path_ + ": in use by another daemon" +
                   (holder.ok() && !holder->empty() ? " (pid " + *holder + ")" : ""));
  }
  const std::string pid = std::to_string(getpid());
  if (ftruncate(fd.get(), 0) != 0 || pwrite(fd.get(), pid.data(), pid.size(), 0) < 0)
    return ErrnoStatus("cannot write " + lock, errno);
  lock_ = std::move(fd);
  return {};
}

Result<bool> StoreDir::FormatMatches() const {
  const std::string file = path_ + "/FORMAT";
  if (access(file.c_str(), F_OK) == 0) {
    DYNA_ASSIGN_OR_RETURN(const std::string found, ReadSmallFile(file));
    return found == format_;
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error))
    if (entry.path().filename() != "LOCK" && entry.path().filename() != "FORMAT.new") return false;
  if (error) return Internal("cannot list " + path_ + ": " + error.message());
  DYNA_RETURN_IF_ERROR(WriteFormat());
  return true;
}

Status StoreDir::WriteFormat() const {
  const std::string file = path_ + "/FORMAT", fresh = file + ".new";
  UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return ErrnoStatus("cannot create " + fresh, errno);
  if (write(fd.get(), format_.data(), format_.size()) != static_cast<ssize_t>(format_.size()) ||
      fsync(fd.get()) != 0 || rename(fresh.c_str(), file.c_str()) != 0)
    return ErrnoStatus("cannot write " + file, errno);
  return SyncPath(path_);
}

Status StoreDir::SetAside(std::string_view why) {
  std::string aside;
  for (int n = 1;; ++n) {
    aside = path_ + ".set-aside-" + std::to_string(n);
    if (access(aside.c_str(), F_OK) != 0) break;
    if (n == 1000) return Invalid(path_ + ": 1000 stores were set aside already; remove some");
  }
  if (rename(path_.c_str(), aside.c_str()) != 0)
    return ErrnoStatus("cannot set aside " + path_, errno);
  LogWarn("{}: set aside as {}, because {}; starting empty", path_, aside, why);
  lock_.reset();
  DYNA_RETURN_IF_ERROR(CreateAndLock());
  return WriteFormat();
}

}  // namespace dyna
