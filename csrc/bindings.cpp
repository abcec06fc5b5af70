// With scan_bindings.cpp all that knows Python: checks arrays, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "average_precision.hpp"
#include "diagnosis.hpp"
#include "ranking.hpp"
#include "suppression.hpp"

namespace py = pybind11;

void register_scans(py::module_& m);

namespace {

// no implicit casts: a wrong dtype is an error, not a silent copy
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
const T* column(const Array<T>& array, py::ssize_t size, const char* name) {
  if (array.ndim() != 1 || array.shape(0) != size)
    throw std::invalid_argument(std::string(name) + " must be [" + std::to_string(size) + "]");
  return array.data();
}

void check_range(const std::int64_t* values, py::ssize_t size, py::ssize_t limit, const char* name) {
  for (py::ssize_t i = 0; i < size; ++i)
    if (values[i] < 0 || values[i] >= limit)
      throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] must be in [0, " +
                                  std::to_string(limit) + "), got " + std::to_string(values[i]));
}

void check_scores(const double* values, py::ssize_t size) {
  for (py::ssize_t i = 0; i < size; ++i)
    if (std::isnan(values[i])) throw std::invalid_argument("score[" + std::to_string(i) + "] must not be NaN");
}

ahlm::GroundTruth ground_truth(const Array<std::int64_t>& video, const Array<std::int64_t>& class_index,
                               const Array<double>& start, const Array<double>& end, py::ssize_t n_videos,
                               py::ssize_t n_classes) {
  const auto n = video.size();
  const ahlm::GroundTruth truth{static_cast<std::size_t>(n), column(video, n, "truth_video"),
                                column(class_index, n, "truth_class"), column(start, n, "truth_start"),
                                column(end, n, "truth_end")};
  if (n > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("too many ground-truth instances");
  check_range(truth.video, n, n_videos, "truth_video");
  check_range(truth.class_index, n, n_classes, "truth_class");
  return truth;
}

ahlm::Predictions scored(const Array<std::int64_t>& video, const Array<std::int64_t>& class_index,
                         const Array<double>& score, const Array<double>& start, const Array<double>& end,
                         py::ssize_t n_videos, py::ssize_t n_classes) {
  const auto n = video.size();
  const ahlm::Predictions predictions{static_cast<std::size_t>(n), column(video, n, "video"),
                                      column(class_index, n, "class_index"), column(score, n, "score"),
                                      column(start, n, "start"), column(end, n, "end")};
  if (n > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("too many predictions");
  check_range(predictions.video, n, n_videos, "video");
  check_range(predictions.class_index, n, n_classes, "class_index");
  return predictions;
}

const double* thresholds(const Array<double>& tious) {
  if (tious.ndim() != 1) throw std::invalid_argument("tious must be [K]");
  return tious.data();
}

py::tuple average_precision(const Array<std::int64_t>& truth_video, const Array<std::int64_t>& truth_class,
                            const Array<double>& truth_start, const Array<double>& truth_end,
                            const Array<std::int64_t>& video, const Array<std::int64_t>& class_index,
                            const Array<double>& score, const Array<double>& start, const Array<double>& end,
                            const py::object& order, const py::object& tie_offsets, const py::object& tie_ranks,
                            py::ssize_t n_videos, py::ssize_t n_classes, const Array<double>& tious,
                            unsigned n_threads) {
  const auto truth = ground_truth(truth_video, truth_class, truth_start, truth_end, n_videos, n_classes);
  const auto predictions = scored(video, class_index, score, start, end, n_videos, n_classes);
  const double* const levels = thresholds(tious);
  const auto n = video.size(), n_tious = tious.size();
  ahlm::OfficialTies ties{};
  Array<std::int64_t> order_array, offsets_array, ranks_array;
  if (order.is_none()) {
    check_scores(predictions.score, n);
  } else {
    order_array = py::cast<Array<std::int64_t>>(order);
    offsets_array = py::cast<Array<std::int64_t>>(tie_offsets);
    ranks_array = py::cast<Array<std::int64_t>>(tie_ranks);
    ties = {column(order_array, n, "order"), column(offsets_array, n, "tie_offsets"),
            column(ranks_array, ranks_array.size(), "tie_ranks"), static_cast<std::size_t>(ranks_array.size())};
    check_range(ties.order, n, n, "order");
  }
  Array<double> ap({n_tious, n_classes});
  Array<std::int64_t> taken_by({n_tious, truth_video.size()});
  double* const ap_data = ap.mutable_data();
  std::int64_t* const taken_data = taken_by.mutable_data();
  {
    const py::gil_scoped_release release;
    ahlm::average_precision(truth, predictions, ties, static_cast<std::size_t>(n_videos),
                            static_cast<std::size_t>(n_classes), levels, static_cast<std::size_t>(n_tious), n_threads,
                            ap_data, taken_data);
  }
  return py::make_tuple(ap, taken_by);
}

Array<std::int64_t> first_ranks(const Array<std::int64_t>& truth_video, const Array<double>& truth_start,
                                const Array<double>& truth_end, const Array<std::int64_t>& video,
                                const Array<double>& score, const Array<double>& start, const Array<double>& end,
                                py::ssize_t n_videos, const Array<double>& tious, unsigned n_threads) {
  // classes play no part: any column of indices serves in their place
  const auto truth = ground_truth(truth_video, truth_video, truth_start, truth_end, n_videos, n_videos);
  const auto proposals = scored(video, video, score, start, end, n_videos, n_videos);
  const double* const levels = thresholds(tious);
  check_scores(proposals.score, video.size());
  Array<std::int64_t> ranks({tious.size(), truth_video.size()});
  std::int64_t* const data = ranks.mutable_data();
  {
    const py::gil_scoped_release release;
    ahlm::first_ranks(truth, proposals, static_cast<std::size_t>(n_videos), levels,
                      static_cast<std::size_t>(tious.size()), n_threads, data);
  }
  return ranks;
}

py::tuple classification(const Array<double>& scores, const Array<bool>& labels) {
  if (scores.ndim() != 2 || labels.ndim() != 2 || scores.shape(0) != labels.shape(0) ||
      scores.shape(1) != labels.shape(1))
    throw std::invalid_argument("scores and labels must both be [V, C]");
  check_scores(scores.data(), scores.size());
  Array<double> ap(scores.shape(1));
  Array<std::int64_t> best_rank(scores.shape(0));
  ahlm::classification(scores.data(), labels.data(), static_cast<std::size_t>(scores.shape(0)),
                       static_cast<std::size_t>(scores.shape(1)), ap.mutable_data(), best_rank.mutable_data());
  return py::make_tuple(ap, best_rank);
}

py::tuple diagnose(const Array<std::int64_t>& truth_video, const Array<std::int64_t>& truth_class,
                   const Array<double>& truth_start, const Array<double>& truth_end, const Array<std::int64_t>& video,
                   const Array<std::int64_t>& class_index, const Array<double>& score, const Array<double>& start,
                   const Array<double>& end, py::ssize_t n_videos, py::ssize_t n_classes, double tiou, double low) {
  const auto truth = ground_truth(truth_video, truth_class, truth_start, truth_end, n_videos, n_classes);
  const auto predictions = scored(video, class_index, score, start, end, n_videos, n_classes);
  check_scores(predictions.score, video.size());
  Array<std::int64_t> kind(video.size()), taken_by(truth_video.size());
  static_assert(sizeof(ahlm::Kind) == sizeof(std::int64_t));
  ahlm::diagnose(truth, predictions, static_cast<std::size_t>(n_videos), static_cast<std::size_t>(n_classes), tiou, low,
                 reinterpret_cast<ahlm::Kind*>(kind.mutable_data()), taken_by.mutable_data());
  return py::make_tuple(kind, taken_by);
}

py::tuple suppress(const Array<std::int64_t>& class_index, const Array<double>& score, const Array<double>& start,
                   const Array<double>& end, double tiou, double sigma, double min_score, double extra) {
  const auto n = class_index.size();
  const ahlm::Detections detections{static_cast<std::size_t>(n), column(class_index, n, "class_index"),
                                    column(score, n, "score"), column(start, n, "start"), column(end, n, "end")};
  check_scores(detections.score, n);
  std::vector<double> scores(detections.score, detections.score + n);
  std::vector<std::int64_t> kept;
  {
    const py::gil_scoped_release release;
    kept = ahlm::suppress(detections, tiou, sigma, min_score, extra, scores.data());
  }
  Array<std::int64_t> index(static_cast<py::ssize_t>(kept.size()));
  Array<double> kept_scores(static_cast<py::ssize_t>(kept.size()));
  for (std::size_t i = 0; i < kept.size(); ++i) {
    index.mutable_data()[i] = kept[i];
    kept_scores.mutable_data()[i] = scores[static_cast<std::size_t>(kept[i])];
  }
  return py::make_tuple(index, kept_scores);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled parts of ahlm; ahlm.evaluation and ahlm.localization are their public faces.";
  m.def("average_precision", &average_precision, py::arg("truth_video").noconvert(),
        py::arg("truth_class").noconvert(), py::arg("truth_start").noconvert(), py::arg("truth_end").noconvert(),
        py::arg("video").noconvert(), py::arg("class_index").noconvert(), py::arg("score").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("order").none(true),
        py::arg("tie_offsets").none(true), py::arg("tie_ranks").none(true), py::arg("n_videos"), py::arg("n_classes"),
        py::arg("tious").noconvert(), py::arg("n_threads"));
  m.def("first_ranks", &first_ranks, py::arg("truth_video").noconvert(), py::arg("truth_start").noconvert(),
        py::arg("truth_end").noconvert(), py::arg("video").noconvert(), py::arg("score").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("n_videos"), py::arg("tious").noconvert(),
        py::arg("n_threads"));
  m.def("classification", &classification, py::arg("scores").noconvert(), py::arg("labels").noconvert());
  m.def("diagnose", &diagnose, py::arg("truth_video").noconvert(), py::arg("truth_class").noconvert(),
        py::arg("truth_start").noconvert(), py::arg("truth_end").noconvert(), py::arg("video").noconvert(),
        py::arg("class_index").noconvert(), py::arg("score").noconvert(), py::arg("start").noconvert(),
        py::arg("end").noconvert(), py::arg("n_videos"), py::arg("n_classes"), py::arg("tiou"), py::arg("low"));
  m.def("suppress", &suppress, py::arg("class_index").noconvert(), py::arg("score").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("tiou"), py::arg("sigma"),
        py::arg("min_score"), py::arg("extra"));
#if defined(AHLM_HAS_SCANS)
  register_scans(m);
#endif
}
