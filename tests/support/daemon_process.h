// dynacompressd, of the same build, as a process of its own in a folder that goes with it.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace dyna::testing {

class DaemonProcess {
 public:
  // `more`: TOML, first keys of [arena] and then other tables; no disk, no admin page.
  // codec_threads 0: its default.
  DaemonProcess(const std::string& backend, int codec_threads, uint64_t arena,
                const std::string& more = "") {
    char name[] = "/tmp/dyna-daemon-XXXXXX";
    folder_ = mkdtemp(name);
    std::ofstream(folder_ + "/d.toml")
        << "[server]\nsocket = \"" << socket() << "\"\nstate_dir = \"" << folder_
        << "/state\"\nbackend = \"" << backend << "\"\ncodec_threads = " << codec_threads
        << "\n[admin]\nenabled = false\n[spill]\nenabled = false\n[bank]\nenabled = false\n"
        << "[arena]\nbytes = " << arena << "\nprefault = false\n"
        << more;
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    const std::string program = self + "/dynacompressd", config = folder_ + "/d.toml";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int log = open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
      dup2(log, 2);
      execl(program.c_str(), program.c_str(), "--config", config.c_str(), nullptr);
      _exit(127);
    }
    for (int i = 0; i < 400 && !std::filesystem::exists(socket()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  ~DaemonProcess() {
    Stop();
    std::filesystem::remove_all(folder_);
  }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  std::string socket() const { return folder_ + "/d.sock"; }
  bool running() { return pid_ > 0 && waitpid(pid_, &status_, WNOHANG) == 0; }
  // Its exit status, as waitpid has it.
  int Stop() {
    if (running()) {
      kill(pid_, SIGTERM);
      waitpid(pid_, &status_, 0);
    }
    pid_ = 0;
    return status_;
  }
  std::string log() const {
    std::ifstream file(folder_ + "/log");
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::string folder_;
  pid_t pid_ = 0;
  int status_ = 0;
};

}  // namespace dyna::testing
