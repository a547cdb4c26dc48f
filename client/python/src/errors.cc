#include "module.h"

namespace dyna::python {
namespace {
nb::object* error_type = nullptr;  // never destroyed: Python may outlive the module's statics
}

void RegisterErrors(nb::module_& m) {
  nb::object type = nb::module_::import_("dynacompress._errors").attr("Error");
  m.attr("Error") = type;
  error_type = new nb::object(type);
}

void Raise(const Status& status) {
  if (status.ok()) return;
  nb::object e = (*error_type)(std::string(StatusName(status.code())),
                               std::string(status.message()), status.retry_after_ms());
  PyErr_SetObject(error_type->ptr(), e.ptr());
  throw nb::python_error();
}

}  // namespace dyna::python
