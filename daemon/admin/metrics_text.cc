// A snapshot to Prometheus' text format; the only file that knows prometheus-cpp.
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "daemon/admin/metrics.h"

namespace dyna::admin {
namespace {

prometheus::ClientMetric::Histogram ToHistogram(const Histogram& from) {
  prometheus::ClientMetric::Histogram to;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < Histogram::kBounds; ++i) {
    cumulative += from.counts[i];
    to.bucket.push_back({cumulative, Histogram::BoundSeconds(i)});
  }
  to.sample_count = cumulative + from.counts[Histogram::kBounds];
  to.sample_sum = from.sum_seconds;
  return to;
}

prometheus::ClientMetric ToMetric(const Descriptor& row, const Samples::Sample& sample) {
  prometheus::ClientMetric metric;
  for (size_t i = 0; i < row.labels.size() && i < sample.labels.size(); ++i)
    metric.label.push_back({std::string(row.labels[i]), sample.labels[i]});
  switch (row.type) {
    case Type::kCounter:
      metric.counter.value = sample.value;
      break;
    case Type::kGauge:
      metric.gauge.value = sample.value;
      break;
    case Type::kHistogram:
      metric.histogram = ToHistogram(*sample.histogram);
      break;
  }
  return metric;
}

prometheus::MetricType ToType(Type type) {
  switch (type) {
    case Type::kCounter:
      return prometheus::MetricType::Counter;
    case Type::kGauge:
      return prometheus::MetricType::Gauge;
    case Type::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

}  // namespace

std::string MetricsText(const Snapshot& snapshot) {
  std::vector<prometheus::MetricFamily> families;
  families.reserve(Descriptors().size());
  for (const Descriptor& row : Descriptors()) {
    Samples samples;
    row.emit(snapshot, samples);
    prometheus::MetricFamily family{
        "dynacompress_" + std::string(row.name), std::string(row.help), ToType(row.type), {}};
    for (const Samples::Sample& sample : samples.list())
      family.metric.push_back(ToMetric(row, sample));
    families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace dyna::admin
