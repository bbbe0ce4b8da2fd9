// Package near reads the near tier of this host's Larder node from shared memory.
//
//	tier, err := near.Open("shop") // the node's near.shared
//	value, err := tier.Get(key, func(key string) ([]byte, error) { return client.Get(ctx, key).Bytes() })
//
// Build with CGO_CFLAGS=-I<larder>/include and CGO_LDFLAGS=-L<where liblarder_near.so is>.
package near

/*
#cgo LDFLAGS: -llarder_near
#include <larder/near.h>
#include <stdlib.h>

// One call into C for the common case: the key and the buffer as Go has them.
static larder_near_result get(larder_near *near, _GoString_ key, void *buffer, size_t capacity,
                              size_t *size) {
  return larder_near_get(near, _GoStringPtr(key), _GoStringLen(key), buffer, capacity, size);
}
*/
import "C"

import (
	"errors"
	"runtime"
	"unsafe"
)

// Result is what a look comes to; see larder/near.h.
type Result int

const (
	Found     Result = C.LARDER_NEAR_FOUND
	Absent    Result = C.LARDER_NEAR_ABSENT // there is no such row: no need to ask
	Miss      Result = C.LARDER_NEAR_MISS   // ask the node
	NodeDown  Result = C.LARDER_NEAR_NODE_DOWN
	Restarted Result = C.LARDER_NEAR_RESTARTED // said once a life: look again
)

var names = map[Result]string{
	Found: "FOUND", Absent: "ABSENT", Miss: "MISS", NodeDown: "NODE_DOWN", Restarted: "RESTARTED",
}

func (r Result) String() string { return names[r] }

// Tier is a near tier, for all goroutines at once.
type Tier struct {
	handle *C.larder_near
}

func check(result C.larder_near_result) error {
	if result >= 0 {
		return nil
	}
	return errors.New(C.GoString(C.larder_near_text(result)))
}

// Open attaches to the near tier of that name.
func Open(name string) (*Tier, error) {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	tier := &Tier{}
	if err := check(C.larder_near_open(text, &tier.handle)); err != nil {
		return nil, err
	}
	runtime.SetFinalizer(tier, (*Tier).Close)
	return tier, nil
}

// Close detaches. Nothing else may be called then.
func (t *Tier) Close() {
	C.larder_near_close(t.handle)
	t.handle = nil
	runtime.SetFinalizer(t, nil)
}

// Look appends the value to buffer[:0], which may be nil, if the result is Found.
func (t *Tier) Look(key string, buffer []byte) ([]byte, Result, error) {
	if cap(buffer) == 0 {
		buffer = make([]byte, 4096)
	}
	for {
		buffer = buffer[:cap(buffer)]
		var size C.size_t
		result := C.get(t.handle, key, unsafe.Pointer(&buffer[0]), C.size_t(len(buffer)), &size)
		runtime.KeepAlive(t)
		if result != C.LARDER_NEAR_TOO_SMALL {
			return buffer[:size], Result(result), check(result)
		}
		buffer = make([]byte, size)
	}
}

// Get answers the value from here, or else what ask does; nil if there is no such row.
func (t *Tier) Get(key string, ask func(key string) ([]byte, error)) ([]byte, error) {
	value, result, err := t.Look(key, nil)
	if result == Restarted {
		value, result, err = t.Look(key, nil)
	}
	switch {
	case err == nil && result == Found:
		return value, nil
	case err == nil && result == Absent:
		return nil, nil
	}
	return ask(key)
}
