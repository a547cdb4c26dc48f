#include <fmt/format.h>

#include "daemon/admin/status_view.h"

namespace dyna::admin {
namespace {

constexpr std::string_view kHead =
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport "
    "content='width=device-width'><meta http-equiv=refresh content=5><title>dynacompressd</title>"
    "<style>body{font:14px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}h1{font-size:1.3em}h2{font-size:1em;margin:1.6em 0 .3em}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.15em .8em .15em 0;text-align:left;"
    "border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}td:first-child{color:#666;"
    "width:16em}.bar{background:#e8e8e8;height:.7em}.bar i{display:block;height:100%;"
    "background:#3a7}.bad{color:#b00}@media(prefers-color-scheme:dark){body{color:#ddd;"
    "background:#161616}td,th{border-color:#333}.bar{background:#333}}</style>";

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

double D(uint64_t value) { return static_cast<double>(value); }

class Page {
 public:
  void Section(std::string_view title) {
    Close();
    out_ += fmt::format("<h2>{}</h2><table>", Escape(title));
    open_ = true;
  }
  void Row(std::string_view name, std::string_view value) {
    out_ += fmt::format("<tr><td>{}<td>{}", Escape(name), Escape(value));
  }
  void Bar(std::string_view name, double used, double capacity) {
    const double share = capacity > 0 ? std::min(used / capacity, 1.0) : 0;
    out_ += fmt::format(
        "<tr><td>{}<td>{} of {} ({:.1f} %)<div class=bar><i style='width:{:.1f}%'>"
        "</i></div>",
        Escape(name), HumanBytes(used), HumanBytes(capacity), share * 100, share * 100);
  }
  void Raw(std::string_view html) { out_ += html; }
  std::string Take() {
    Close();
    return std::move(out_);
  }

 private:
  void Close() {
    if (open_) out_ += "</table>";
    open_ = false;
  }
  std::string out_{kHead};
  bool open_ = false;
};

void AddTiles(Page& page, std::string_view name, const std::array<uint64_t, 256>& tiles,
              bool is_key) {
  uint64_t all = 0;
  for (const uint64_t n : tiles) all += n;
  std::string text;
  for (size_t k = 0; k < tiles.size() && all; ++k)
    if (tiles[k])
      text += fmt::format("{}{} {:.1f} %", text.empty() ? "" : ", ",
                          KindLabel(is_key, static_cast<uint8_t>(k)), 100 * D(tiles[k]) / D(all));
  page.Row(name, text.empty() ? "none" : text);
}

void AddContexts(Page& page, const Snapshot& s) {
  for (const ContextFact& c : s.contexts) {
    page.Section(fmt::format("Model {} {}", c.model, c.revision));
    page.Row("blocks", fmt::format("{}", c.blocks));
    page.Row("stored", fmt::format("{} for {} raw", HumanBytes(D(c.encoded_bytes)),
                                   HumanBytes(D(c.raw_bytes))));
    page.Row("bases", fmt::format("{} in use, {}", c.bases.size(), HumanBytes(D(c.basis_bytes))));
    page.Row("learned from", fmt::format("{} tokens, {} queries, {:.2f} s", c.learned_tokens,
                                         c.learned_queries, c.learn_seconds));
  }
}

}  // namespace

std::string HumanBytes(double bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit ? 1 : 0, kUnits[unit]);
}

std::string StatusPage(const Snapshot& s) {
  const StoreStats& t = s.store;
  Page page;
  page.Raw(fmt::format("<h1>dynacompressd {}</h1>", Escape(s.version)));
  for (const std::string& reason : s.not_ready)
    page.Raw(fmt::format("<p class=bad>Not ready: {}</p>", Escape(reason)));

  page.Section("Now");
  page.Row("up", fmt::format("{:.0f} s", s.uptime_seconds));
  page.Row("policy, backend", fmt::format("{}, {}", s.policy, s.isa));
  if (s.backend.failures != 0)
    page.Row("GPU failures",
             fmt::format("{}, {} segments coded by the CPU instead; the last: {}",
                         s.backend.failures, s.backend.redone_jobs, s.backend.last_error));
  page.Row("clients",
           fmt::format("{} ({} over UCX), {} leases", s.clients, s.ucx.channels, t.leases));
  page.Row("regions", fmt::format("{}, {}", s.regions, HumanBytes(D(s.region_bytes))));

  page.Section("Held");
  page.Bar("memory budget", D(t.charged_bytes), D(t.budget_bytes));
  if (s.spill_enabled) page.Bar("spill", D(s.spill.live_bytes), D(s.spill.budget));
  if (s.bank_enabled) page.Bar("bank", D(s.bank.live_bytes), D(s.bank.budget));
  page.Row("blocks", fmt::format("{} in memory, {} in spill, {} in the bank", t.host.blocks,
                                 t.spill.blocks, t.bank.blocks));
  page.Row("fragmentation", fmt::format("{:.1f} %", s.arena.storage.fragmentation * 100));

  page.Section("Fidelity");
  page.Row("ratio", t.host.bytes ? fmt::format("{:.2f}", D(t.raw_bytes) / D(t.host.bytes)) : "-");
  page.Row("bits an element", fmt::format("{:.2f}", t.mean_bits));
  page.Row("measured error (nmse)", fmt::format("{:.5f}", t.mean_nmse));
  page.Row("price (log2)", fmt::format("{:.2f}", t.log2_price));
  AddTiles(page, "K tiles", t.k_tiles, true);
  AddTiles(page, "V tiles", t.v_tiles, false);

  page.Section("Since the start");
  page.Row("blocks looked up",
           fmt::format("{}: {} in memory, {} in spill, {} in the bank, {} missed", t.lookups,
                       t.hits[static_cast<size_t>(Tier::kHost)],
                       t.hits[static_cast<size_t>(Tier::kSpill)],
                       t.hits[static_cast<size_t>(Tier::kBank)], t.misses));
  page.Row("put", fmt::format("{} as {}", HumanBytes(D(t.put_raw_bytes)),
                              HumanBytes(D(t.put_encoded_bytes))));
  page.Row("served", fmt::format("{} from {}", HumanBytes(D(t.fetch_raw_bytes)),
                                 HumanBytes(D(t.fetch_encoded_bytes))));
  page.Row("demoted, spilled, evicted",
           fmt::format("{} segments, {} blocks, {} blocks", t.demoted_segments, t.spilled_blocks,
                       t.evicted_blocks));
  page.Row("sent away", fmt::format("{} RETRY, {} QUOTA", t.retries, t.quota_refusals));
  AddContexts(page, s);

  std::string html = page.Take();
  return html +
         "<p><a href=/metrics>metrics</a> <a href=/status>status</a> "
         "<a href=/readyz>readyz</a> <a href=/livez>livez</a></p></html>\n";
}

}  // namespace dyna::admin
