// go-redis with its defaults (RESP3, connection pool, CLIENT SETINFO).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	ctx, stop = context.WithTimeout(context.Background(), time.Minute)
	run       = fmt.Sprintf("go-redis:%d", os.Getpid())
	checks    int
)

func check(what string, ok bool, seen ...any) {
	if !ok {
		fmt.Fprintln(os.Stderr, "go-redis:", what, seen)
		os.Exit(1)
	}
	checks++
}

func texts(r *redis.Client) {
	a, b := run+":a", run+":b"
	check("ping", r.Ping(ctx).Val() == "PONG", r.Ping(ctx).Err())
	check("set", r.Set(ctx, a, "one", 0).Val() == "OK")
	check("get", r.Get(ctx, a).Val() == "one")
	check("get of an absent key", r.Get(ctx, run+":absent").Err() == redis.Nil)
	check("set ex", r.Set(ctx, b, "two", 100*time.Second).Val() == "OK")
	ttl := r.TTL(ctx, b).Val()
	check("ttl", ttl >= 98*time.Second && ttl <= 100*time.Second, ttl)
	check("set nx on a present key", !r.SetNX(ctx, a, "other", 0).Val())
	values := r.MGet(ctx, a, run+":absent", b).Val()
	check("mget", reflect.DeepEqual(values, []any{"one", nil, "two"}), values)
	check("incr", r.IncrBy(ctx, run+":n", 1).Val() >= 1)
	check("del", r.Del(ctx, a, b).Val() == 2)
}

func pipeline(r *redis.Client) {
	answers, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := 0; i < 500; i++ {
			key := fmt.Sprintf("%s:p:%d", run, i)
			p.Set(ctx, key, i, 0)
			p.Get(ctx, key)
		}
		return nil
	})
	check("pipeline", err == nil && len(answers) == 1000, err)
	for i := 0; i < 500; i++ {
		n, err := answers[2*i+1].(*redis.StringCmd).Int()
		check("pipeline gets", err == nil && n == i, n, err)
	}
	found := map[string]bool{}
	keys := r.Scan(ctx, 0, run+":p:*", 50).Iterator()
	for keys.Next(ctx) {
		found[keys.Val()] = true
	}
	check("scan finds all", keys.Err() == nil && len(found) == 500, len(found), keys.Err())
}

func transactions(r *redis.Client) {
	key := run + ":watched"
	answers, err := r.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, key, 1, 0)
		p.Incr(ctx, key)
		return nil
	})
	check("multi, exec", err == nil && answers[1].(*redis.IntCmd).Val() == 2, err)
	err = r.Watch(ctx, func(tx *redis.Tx) error {
		check("a write beside the watch", r.Set(ctx, key, 10, 0).Err() == nil)
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, key, 3, 0).Err() })
		return err
	}, key)
	check("exec after a conflict", err == redis.TxFailedErr, err)
	check("the value of the other writer", r.Get(ctx, key).Val() == "10")
}

func pubsub(r *redis.Client) {
	listener := r.Subscribe(ctx, run+":news")
	defer listener.Close()
	_, err := listener.Receive(ctx)
	check("subscribe", err == nil, err)
	check("publish reaches one", r.Publish(ctx, run+":news", "hello").Val() == 1)
	message, err := listener.ReceiveMessage(ctx)
	check("message", err == nil && message.Payload == "hello", err)
	check("ping while subscribed", listener.Ping(ctx, "still") == nil)
	pong, err := listener.Receive(ctx)
	check("pong while subscribed", err == nil && pong.(*redis.Pong).Payload == "still", pong, err)
}

func price(row string) int {
	var product struct{ ID, Price int }
	err := json.Unmarshal([]byte(row), &product)
	check("a row as JSON", err == nil && product.ID == 1, row)
	return product.Price
}

func declared(r *redis.Client) {
	row := map[string]any{}
	text := r.Get(ctx, "product:1").Val()
	check("a row as JSON", json.Unmarshal([]byte(text), &row) == nil, text)
	row["price"] = price(text) + 1
	changed, _ := json.Marshal(row)
	check("set of a declared key", r.Set(ctx, "product:1", changed, 0).Val() == "OK")
	check("the new price", price(r.Get(ctx, "product:1").Val()) == price(text)+1)
	values := r.MGet(ctx, "product:1", "product:999999").Val()
	check("mget", price(values[0].(string)) == price(text)+1 && values[1] == nil, values)
	explained, err := r.Do(ctx, "LARDER.EXPLAIN", "product:1").Result()
	check("explain", err == nil && strings.Contains(fmt.Sprint(explained), "product"), err)
	err = r.Get(ctx, "product:abc").Err()
	check("a bad id", err != nil && strings.HasPrefix(err.Error(), "LARDER_BADKEY"), err)
}

func main() {
	defer stop()
	address := os.Getenv("LARDER_HOST") + ":" + os.Getenv("LARDER_PORT")
	r := redis.NewClient(&redis.Options{Addr: address})
	old := redis.NewClient(&redis.Options{Addr: address, Protocol: 2})
	texts(r)
	texts(old)
	pipeline(r)
	transactions(r)
	pubsub(r)
	err := r.Do(ctx, "NOSUCH", 1).Err()
	check("unknown command", err != nil && strings.Contains(err.Error(), "unknown command"), err)
	if os.Getenv("LARDER_DECLARED") != "0" {
		declared(r)
		declared(old)
	}
	fmt.Printf("ok: %d checks (go-redis %s)\n", checks, redis.Version())
}
