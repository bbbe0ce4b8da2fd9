// otter under the workload of ../workload.h: the same flags, sequences, rules and names of results
// as the C++ program; one JSON object a repetition on stdout.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
)

const (
	keyBytes    = 14
	batch       = 256 // operations between two looks at the clock
	sampleEvery = 7
	sampleCount = 1 << 14
)

type cache = otter.Cache[string, []byte]

var (
	entries     = flag.Int("entries", 0, "")
	valueBytes  = flag.Int("value_bytes", 0, "")
	threads     = flag.Int("threads", 1, "")
	repetitions = flag.Int("repetitions", 1, "")
	seconds     = flag.Float64("seconds", 0.3, "")
	warmSeconds = flag.Float64("warm_seconds", 0.3, "")
	sequences   = flag.String("sequences", "", "")
	operations  = flag.String("operations", "", "")
	_           = flag.String("system", "otter", "")
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func writeKey(number uint32, out []byte) {
	copy(out, "key:")
	for i := keyBytes - 1; i >= 4; i-- {
		out[i] = byte('0' + number%10)
		number /= 10
	}
}

// Keys side by side in the order of their use; the strings lie in one block.
type sequence struct {
	numbers []uint32
	text    string
}

func newSequence(numbers []uint32) *sequence {
	text := make([]byte, len(numbers)*keyBytes)
	for i, number := range numbers {
		writeKey(number, text[i*keyBytes:])
	}
	return &sequence{numbers, string(text)}
}

func readSequence(name string) *sequence {
	bytes, err := os.ReadFile(fmt.Sprintf("%s/%s.u32", *sequences, name))
	check(err)
	numbers := make([]uint32, len(bytes)/4)
	for i := range numbers {
		numbers[i] = binary.LittleEndian.Uint32(bytes[4*i:])
	}
	return newSequence(numbers)
}

func (s *sequence) key(i int) string { return s.text[i*keyBytes : (i+1)*keyBytes] }

// Of the numbers of `count` keys from `begin` on, going round.
func (s *sequence) sum(begin int, count uint64) uint64 {
	length := uint64(len(s.numbers))
	var whole, rest uint64
	if count >= length {
		for _, number := range s.numbers {
			whole += uint64(number)
		}
		whole *= count / length
	}
	for i := range count % length {
		rest += uint64(s.numbers[(uint64(begin)+i)%length])
	}
	return whole + rest
}

func newCache(capacity int) *cache {
	return otter.Must(&otter.Options[string, []byte]{MaximumSize: capacity, InitialCapacity: capacity})
}

func newBuffer() []byte {
	buffer := make([]byte, *valueBytes)
	for i := range buffer {
		buffer[i] = 'v'
	}
	return buffer
}

func setNumber(buffer []byte, number uint32) {
	binary.LittleEndian.PutUint64(buffer, uint64(number))
}

// Key and value are copied in, as for everybody.
func insert(c *cache, key string, buffer []byte) {
	c.Set(strings.Clone(key), append([]byte(nil), buffer...))
}

func put(c *cache, number uint32, buffer []byte) {
	var key [keyBytes]byte
	writeKey(number, key[:])
	setNumber(buffer, number)
	c.Set(string(key[:]), append([]byte(nil), buffer...))
}

type tally struct {
	hits, sum uint64
}

// One thread, and what it did in one repetition.
type worker struct {
	tally
	next       int
	buffer     []byte
	operations uint64
	elapsed    time.Duration
	samples    []int64
	number     uint32
	loaded     bool
	loader     otter.LoaderFunc[string, []byte]
}

func newWorkers(s *sequence) []*worker {
	workers := make([]*worker, *threads)
	for i := range workers {
		w := &worker{next: len(s.numbers) / *threads * i, buffer: newBuffer()}
		w.loader = func(context.Context, string) ([]byte, error) {
			w.loaded = true
			setNumber(w.buffer, w.number)
			return append([]byte(nil), w.buffer...), nil
		}
		workers[i] = w
	}
	return workers
}

var background = context.Background()

// A hit or, by the cache's own single flight, a load; the key of a miss stays with the cache.
func (w *worker) getOrLoad(c *cache, s *sequence, at int) {
	w.number, w.loaded = s.numbers[at], false
	value, err := c.Get(background, s.key(at), w.loader)
	check(err)
	if !w.loaded {
		w.hits++
	}
	w.sum += binary.LittleEndian.Uint64(value)
}

type step func(w *worker, s *sequence, at int)

func clockPair() int64 {
	pairs := make([]int64, 1001)
	for i := range pairs {
		start := time.Now()
		pairs[i] = int64(time.Since(start))
	}
	slices.Sort(pairs)
	return pairs[500]
}

// For a time, or, if count > 0, exactly so many operations.
func (w *worker) run(s *sequence, limit time.Duration, count int, do step) {
	w.tally, w.operations = tally{}, 0
	at, start := w.next, time.Now()
	for {
		size := batch
		if count > 0 {
			size = min(size, count-int(w.operations))
		}
		for range size {
			do(w, s, at)
			if at++; at == len(s.numbers) {
				at = 0
			}
		}
		w.operations += uint64(size)
		if w.elapsed = time.Since(start); count > 0 && int(w.operations) == count ||
			count == 0 && w.elapsed >= limit {
			break
		}
	}
	if w.sum != s.sum(w.next, w.operations) {
		panic("a value of another key")
	}
	w.next = at
}

// One of sampleEvery operations, less what reading the clock takes.
func (w *worker) sample(s *sequence, count int, do step) {
	empty, kept := clockPair(), w.tally
	w.samples = make([]int64, count)
	for i := range w.samples {
		for range sampleEvery - 1 {
			do(w, s, w.next)
			if w.next++; w.next == len(s.numbers) {
				w.next = 0
			}
		}
		start := time.Now()
		do(w, s, w.next)
		w.samples[i] = max(0, int64(time.Since(start))-empty)
		if w.next++; w.next == len(s.numbers) {
			w.next = 0
		}
	}
	w.tally = kept
}

func drive(workers []*worker, s *sequence, limit time.Duration, count, samples int, do step) {
	runtime.GC()
	for _, phase := range []func(w *worker){
		func(w *worker) { w.run(s, limit, count, do) },
		func(w *worker) { w.sample(s, samples, do) },
	} {
		var done sync.WaitGroup
		start := make(chan struct{})
		for _, w := range workers {
			done.Add(1)
			go func() {
				defer done.Done()
				<-start
				phase(w)
			}()
		}
		close(start)
		done.Wait()
	}
}

func report(operation string, repetition int, workers []*worker) {
	var total, hits uint64
	var elapsed time.Duration
	var samples []int64
	for _, w := range workers {
		total += w.operations
		hits += w.hits
		elapsed += w.elapsed
		samples = append(samples, w.samples...)
	}
	slices.Sort(samples)
	at := func(share float64) int64 { return samples[int(share*float64(len(samples)))] }
	perSecond := float64(total) / (elapsed.Seconds() / float64(len(workers)))
	fmt.Printf(`{"name": "%s/otter/%d/%d", "run_type": "iteration", "threads": %d, `+
		`"repetition_index": %d, "iterations": %d, "items_per_second": %.0f, "hit_ratio": %.6f, `+
		`"p50_ns": %d, "p99_ns": %d, "p999_ns": %d}`+"\n",
		operation, *entries, *valueBytes, *threads, repetition, total, perSecond,
		float64(hits)/float64(total), at(0.5), at(0.99), at(0.999))
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * 1e9) }

func repeat(operation string, s *sequence, onlyHits bool, do step) {
	workers := newWorkers(s)
	drive(workers, s, duration(*warmSeconds), 0, 1, do)
	for repetition := range *repetitions {
		drive(workers, s, duration(*seconds), 0, sampleCount, do)
		for _, w := range workers {
			if onlyHits && w.hits != w.operations {
				panic("not all were hits")
			}
		}
		report(operation, repetition, workers)
	}
}

// All N keys are there: a quarter more room than they need.
func held() *cache {
	c, buffer := newCache(*entries*5/4), newBuffer()
	for number := range uint32(*entries) {
		put(c, number, buffer)
	}
	return c
}

func chunk(number int) *sequence {
	return readSequence(fmt.Sprintf("load-%d-%d", *entries, number))
}

// As full as it gets with room for N, by what was asked for.
func full() *cache {
	c, buffer := newCache(*entries), newBuffer()
	for _, number := range readSequence(fmt.Sprintf("order-%d", *entries)).numbers {
		put(c, number, buffer)
	}
	first := chunk(0)
	w := newWorkers(first)[0]
	for at := range first.numbers {
		w.getOrLoad(c, first, at)
	}
	return c
}

func get(c *cache, operation string) {
	file := "get"
	if operation == "get_zipf" {
		file = "zipf"
	}
	s := readSequence(fmt.Sprintf("%s-%d", file, *entries))
	view := func(w *worker, s *sequence, at int) {
		if value, ok := c.GetIfPresent(s.key(at)); ok {
			w.hits++
			w.sum += binary.LittleEndian.Uint64(value)
		}
	}
	copied := func(w *worker, s *sequence, at int) {
		if value, ok := c.GetIfPresent(s.key(at)); ok {
			w.hits++
			copy(w.buffer, value)
			w.sum += binary.LittleEndian.Uint64(w.buffer)
		}
	}
	if operation == "get_copy" {
		repeat(operation, s, true, copied)
	} else {
		repeat(operation, s, true, view)
	}
}

func getOrLoad(c *cache) {
	for repetition := range *repetitions {
		s := chunk(1 + repetition)
		workers, share := newWorkers(s), len(s.numbers) / *threads
		drive(workers, s, 0, share*3/4, share/4/sampleEvery, func(w *worker, s *sequence, at int) {
			w.getOrLoad(c, s, at)
		})
		report("get_or_load", repetition, workers)
	}
}

func inserts(c *cache) {
	// When they come round again they are long gone: four times what fits.
	numbers := make([]uint32, max(4**entries, 1<<20))
	for i := range numbers {
		numbers[i] = uint32(2**entries + i)
	}
	repeat("insert", newSequence(numbers), false, func(w *worker, s *sequence, at int) {
		setNumber(w.buffer, s.numbers[at])
		insert(c, s.key(at), w.buffer)
		w.sum += uint64(s.numbers[at])
	})
}

func heapBytes() float64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}

// What is live after a collection: resident memory depends on how much garbage one allows.
func memory() {
	before := heapBytes()
	c, buffer := newCache(*entries), newBuffer()
	count := uint32(*entries * 5 / 4)
	for number := range count {
		put(c, number, buffer)
	}
	c.CleanUp()
	grown, here := heapBytes()-before, 0
	for number := range count {
		var key [keyBytes]byte
		writeKey(number, key[:])
		if _, ok := c.GetIfPresent(string(key[:])); ok {
			here++
		}
	}
	fmt.Printf(`{"name": "memory/otter/%d/%d", "run_type": "iteration", "threads": 1, `+
		`"repetition_index": 0, "held_entries": %d, "overhead_bytes": %.1f, "live_heap": true}`+"\n",
		*entries, *valueBytes, here, grown/float64(here)-float64(keyBytes+*valueBytes))
	runtime.KeepAlive(c)
}

func main() {
	flag.Parse()
	var c *cache
	content := ""
	need := func(what string, make func() *cache) {
		if content != what {
			c = nil
			c, content = make(), what
		}
	}
	for _, operation := range strings.Split(*operations, ",") {
		switch operation {
		case "get_view", "get_copy", "get_zipf":
			need("held", held)
			get(c, operation)
		case "get_or_load":
			need("full", full)
			getOrLoad(c)
		case "insert":
			need("full", full)
			inserts(c)
		case "memory":
			memory()
		default:
			panic("no operation " + strconv.Quote(operation))
		}
	}
}
