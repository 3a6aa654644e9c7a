// Before everything else in files whose allocations are counted: strings and string streams are compiled into the
// library, where operator new is wrapped, instead of taken from the C++ library, where it is not.
#pragma once

#ifdef __cplusplus
#    include <cstddef>
#    ifdef __GLIBCXX__
#        pragma push_macro("_GLIBCXX_EXTERN_TEMPLATE")
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 0
#        include <string>
#        pragma pop_macro("_GLIBCXX_EXTERN_TEMPLATE")
#        include <istream> // streams themselves stay where their facets are
#        pragma push_macro("_GLIBCXX_EXTERN_TEMPLATE")
#        undef _GLIBCXX_EXTERN_TEMPLATE
#        define _GLIBCXX_EXTERN_TEMPLATE 0
#        include <sstream>
#        pragma pop_macro("_GLIBCXX_EXTERN_TEMPLATE")
#    endif
#endif
