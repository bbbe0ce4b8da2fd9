// The compiled part of Asio and Beast: everybody else includes declarations only.
#define BOOST_BEAST_SEPARATE_COMPILATION
#include <boost/asio/impl/src.hpp>
#include <boost/beast/src.hpp>
